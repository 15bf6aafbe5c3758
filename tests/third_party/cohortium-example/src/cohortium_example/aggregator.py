"""An aggregator of two exchanges: everyone commits to a vector before anyone shows one."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from cohortium.plugin import MessageError, RefusalError, RingSum, StageRequests, TooFewSitesError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cohortium.plugin import (
        AggregationConfig,
        FederationSpec,
        Randomness,
        RingVector,
        SiteContext,
        SiteId,
        SiteRequest,
    )

COMMIT, REVEAL = b"commit", b"reveal"
"""The two requests."""


@frozen
class Committed:
    """Sums in the clear.

    Guarantees:
        No site's release depends on another's: its hash was sent before any was shown.
        Against the coordinator, who sees every release, it protects nothing.
    """

    def confidentiality(self, federation_spec: FederationSpec) -> None:
        """Nothing is hidden from the coordinator."""

    def coordinator_session(self, config: AggregationConfig, secret: Randomness) -> CommittedLead:
        """Nothing is secret here."""
        return CommittedLead(config)

    def site_session(self, config: AggregationConfig, site_context: SiteContext) -> CommittedSite:
        """Nothing is secret here."""
        return CommittedSite(config)


@define
class CommittedLead:
    """Collects hashes, then the vectors that match them."""

    config: AggregationConfig
    _due: list[bytes] = field(factory=list)
    _asked: bytes = b""
    _waiting: set[SiteId] = field(factory=set)
    _hashes: dict[SiteId, bytes] = field(factory=dict)
    _vectors: dict[SiteId, bytes] = field(factory=dict)

    def begin_attempt(self, round: int, attempt: int, sites: Sequence[SiteId]) -> None:  # noqa: A002
        """Begin anew among `sites`."""
        self._due, self._waiting = [COMMIT, REVEAL], set()
        self._hashes, self._vectors = dict.fromkeys(sites, b""), {}

    def next_requests(self) -> StageRequests:
        """Ask all to commit, then those who did to reveal."""
        if not self._due:
            self._waiting = set()
            return StageRequests()
        self._asked = self._due.pop(0)
        if self._asked == REVEAL:
            self._hashes = {site: digest for site, digest in self._hashes.items() if digest}
        self._waiting = set(self._hashes)
        return StageRequests(self._asked, dict.fromkeys(sorted(self._waiting), b""))

    def receive(self, site: SiteId, reply: bytes) -> None:
        """Keep a hash, or the vector that fits it.

        Raises:
            MessageError: Nothing is asked of this site, or the reply is not what was asked.
        """
        if site not in self._waiting:
            raise MessageError(f"nothing is asked of site {site} now.")
        self._waiting.discard(site)
        if self._asked == COMMIT and len(reply) == hashlib.sha256().digest_size:
            self._hashes[site] = reply
        elif self._asked == REVEAL and hashlib.sha256(reply).digest() == self._hashes[site]:
            self.config.ring.unpack(reply, self.config.length)
            self._vectors[site] = reply
        else:
            raise MessageError(f"site {site} did not send what it was to {self._asked.decode()}.")

    def sum(self) -> RingSum:
        """The sum over those who revealed what they had committed to."""
        need = max(1, self.config.federation_spec.min_contributors)
        if len(self._vectors) < need:
            raise TooFewSitesError(f"{len(self._vectors)} sites revealed, {need} are needed.")
        ring, total = self.config.ring, self.config.ring.zeros(self.config.length)
        for packed in self._vectors.values():
            total = total + ring.unpack(packed, self.config.length)
        return RingSum(ring, total, tuple(sorted(self._vectors)))


@define
class CommittedSite:
    """Trains when it is to commit, and shows the result when it is to reveal."""

    config: AggregationConfig
    _attempt: int = -1
    _packed: bytes = b""

    def handle(self, request: SiteRequest, release: Callable[[], RingVector]) -> bytes:
        """A hash, then what it is the hash of.

        Raises:
            RefusalError: The request is out of order.
            MessageError: It is not one of the two.
        """
        if request.own or request.broadcast not in (COMMIT, REVEAL):
            raise MessageError("the request is neither to commit nor to reveal.")
        if (request.broadcast == COMMIT) != (request.attempt > self._attempt):
            raise RefusalError("out-of-order", f"to {request.broadcast.decode()} is not due.")
        if request.broadcast == COMMIT:
            self._attempt, self._packed = request.attempt, b""
            self._packed = self.config.ring.pack(release().words)
            return hashlib.sha256(self._packed).digest()
        if request.attempt != self._attempt or not self._packed:
            raise RefusalError("out-of-order", "there is nothing to reveal for this attempt.")
        return self._packed
