"""Plain sums: the coordinator sees every release.

It adds the same integers as under masks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define, field, frozen

from cohortium.plugin import (
    Aggregator,
    MessageError,
    Offer,
    RefusalCode,
    RefusalError,
    RingSum,
    StageRequests,
    TooFewSitesError,
    hookimpl,
)

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

COHORTIUM_API = 1


@frozen
class Plain:
    """Sums in the clear.

    Guarantees:
        None against the coordinator, who sees each site's release.  The sum has the same bits as
        under a secure aggregator.
    """

    def confidentiality(self, federation_spec: FederationSpec) -> None:
        """Return None, because nothing is hidden from the coordinator."""

    def coordinator_session(
        self,
        config: AggregationConfig,
        secret: Randomness,  # noqa: ARG002
    ) -> PlainCoordinator:
        """Build the coordinator's session, which has no secret."""
        return PlainCoordinator(config)

    def site_session(self, config: AggregationConfig, site_context: SiteContext) -> PlainSite:  # noqa: ARG002
        """Build a site's session, which has no secret."""
        return PlainSite(config)


@define(slots=False)
class PlainCoordinator:
    """Session of one exchange, in which vectors are added as they come."""

    config: AggregationConfig
    _waiting: frozenset[SiteId] = frozenset()
    _contributors: list[SiteId] = field(factory=list)
    _is_asked: bool = False

    def begin_attempt(self, round: int, attempt: int, sites: Sequence[SiteId]) -> None:  # noqa: A002, ARG002
        """Begin anew among `sites`."""
        self._waiting, self._contributors, self._is_asked = frozenset(sites), [], False
        self._total = self.config.ring.zeros(self.config.length)

    def next_requests(self) -> StageRequests:
        """Ask every site once."""
        if self._is_asked:
            return StageRequests()
        self._is_asked = True
        return StageRequests(per_site=dict.fromkeys(sorted(self._waiting), b""), stage="vectors")

    def receive(self, site: SiteId, reply: bytes) -> None:
        """Add a site's vector."""
        if site not in self._waiting:
            raise MessageError(f"site {site} was not asked, or has answered.")
        self.config.ring.add(reply, self._total)
        self._waiting -= {site}
        self._contributors.append(site)

    def sum(self) -> RingSum:
        """Return the sum over the sites that answered."""
        need = max(1, self.config.federation_spec.min_contributors)
        if len(self._contributors) < need:
            raise TooFewSitesError(f"{len(self._contributors)} sites answered, {need} are needed.")
        return RingSum(self.config.ring, self._total, tuple(sorted(self._contributors)))


@define
class PlainSite:
    """Session that sends the vector when asked, once an attempt."""

    config: AggregationConfig
    _answered: int = -1

    def handle(self, request: SiteRequest, release: Callable[[], RingVector]) -> bytes:
        """Return the packed vector."""
        if request.attempt <= self._answered:
            raise RefusalError(
                RefusalCode.OUT_OF_ORDER, "this attempt's vector has been sent already."
            )
        self._answered = request.attempt
        return self.config.ring.pack(release().words)


@hookimpl
def cohortium_aggregators() -> list[Offer[Aggregator]]:
    """Offer `plain`."""
    return [Offer("plain", Plain, "Sums in the clear, with the same bits as under masks.")]
