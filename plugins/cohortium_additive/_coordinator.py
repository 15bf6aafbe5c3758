"""The coordinator's side: it forwards sealed seeds, and adds the sites' sums."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define, field

from cohortium.plugin import MessageError, RingSum, StageRequests, TooFewSitesError, decode, encode
from cohortium_additive._messages import Key, KeyRequest, Shares, SharesRequest, SumRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cohortium.plugin import AggregationConfig, SiteId

STAGES = ("keys", "shares", "sums")


@define(slots=False)
class AdditiveCoordinator:
    """Session of three exchanges.  A site missing in one ends the attempt.

    Attributes:
        config: Public configuration that all parties agree on.
    """

    config: AggregationConfig
    _sites: tuple[SiteId, ...] = ()
    _stage: int = -1
    _waiting: set[SiteId] = field(factory=set)
    _missing: tuple[SiteId, ...] = ()
    _keys: dict[SiteId, bytes] = field(factory=dict)
    _shares: dict[SiteId, tuple[bytes, ...]] = field(factory=dict)

    def begin_attempt(self, round: int, attempt: int, sites: Sequence[SiteId]) -> None:  # noqa: A002, ARG002
        """Begin anew among `sites`."""
        self._sites, self._stage = tuple(sorted(sites)), -1
        self._waiting, self._missing = set(), ()
        self._keys, self._shares = {}, {}
        self._total = self.config.ring.zeros(self.config.length)

    def next_requests(self) -> StageRequests:
        """Return the next exchange, unless the last one lost a site."""
        if self._waiting:
            self._missing, self._waiting = tuple(sorted(self._waiting)), set()
        if self._missing or self._stage + 1 >= len(STAGES):
            return StageRequests()
        self._stage += 1
        self._waiting = set(self._sites)
        return StageRequests(self._common(), self._parts(), stage=STAGES[self._stage])

    def _common(self) -> bytes:
        if self._stage == 0:
            return encode(KeyRequest())
        if self._stage == 1:
            keys = tuple(self._keys[site] for site in self._sites)
            return encode(SharesRequest(sites=self._sites, keys=keys))
        return encode(SumRequest())

    def _parts(self) -> dict[SiteId, bytes]:
        """Return the parts for single sites.

        They are empty, except in the last exchange.  There they are the seeds that others have
        sealed for each site.
        """
        if self._stage < len(STAGES) - 1:
            return dict.fromkeys(self._sites, b"")
        parts = {}
        for place, site in enumerate(self._sites):
            others = [other for other in self._sites if other != site]
            # A site's list leaves out the site itself.  So the others after its own place are one
            # place earlier.
            sealed = (self._shares[o][place - (site > o)] for o in others)
            parts[site] = encode(Shares(sealed=tuple(sealed)))
        return parts

    def receive(self, site: SiteId, reply: bytes) -> None:
        """Take in a key, sealed seeds, or a sum."""
        if site not in self._waiting:
            raise MessageError(f"site {site} was not asked, or has answered.")
        if self._stage == 0:
            self._keys[site] = decode(reply, Key).public
        elif self._stage == 1:
            sealed = decode(reply, Shares).sealed
            if len(sealed) != len(self._sites) - 1:
                raise MessageError(f"site {site} must seal one seed for each other site.")
            self._shares[site] = sealed
        else:
            self.config.ring.add(reply, self._total)
        self._waiting.discard(site)

    def sum(self) -> RingSum:
        """Return the sum over all sites that were asked."""
        missing = self._missing or tuple(sorted(self._waiting))
        if missing or self._stage + 1 < len(STAGES):
            raise TooFewSitesError(
                f"sites {', '.join(map(str, missing))} did not answer in the exchange of "
                f"{STAGES[max(self._stage, 0)]}, and additive shares need every site; use "
                "aggregator 'secagg' to survive dropouts."
            )
        return RingSum(self.config.ring, self._total, self._sites)
