"""All sites in this process, one after the other, sharing one resident network."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from cohortium.plugin import Engine, Offer, StudyError, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from cohortium.plugin import SiteFactory, SiteHandle, SiteId

COHORTIUM_API = 1


@frozen
class Inline:
    """Runs sites in turn.  No copy of the model is kept for each of them."""

    def connect(self, sites: Mapping[SiteId, SiteFactory] | None) -> InlineExchange:
        """Make every site beside the first."""
        if sites is None:
            raise StudyError("the engine 'inline' simulates its sites and cannot serve hospitals.")
        made: dict[SiteId, SiteHandle] = {}
        first: SiteHandle | None = None
        for site, recipe in sites.items():
            made[site] = recipe.create(share_model_with=first)
            first = first or made[site]
        return InlineExchange(made)


@define
class InlineExchange:
    """Calls each site and yields what it says, unless that has taken it too long."""

    sites: Mapping[SiteId, SiteHandle]
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)

    def exchange(
        self, broadcast: bytes, per_site: Mapping[SiteId, bytes], timeout: float | None = None
    ) -> Iterator[tuple[SiteId, bytes]]:
        """One site after the other, in the order of `per_site`; none of them is cut short."""
        for site, own in per_site.items():
            began = self.clock()
            reply = self.sites[site].answer(broadcast, own)
            if timeout is None or self.clock() - began <= timeout:
                yield site, reply

    def close(self) -> None:
        """Forget the sites."""
        self.sites = {}


@hookimpl
def cohortium_engines() -> list[Offer[Engine]]:
    """Offer `inline`."""
    return [Offer("inline", Inline, "All sites in this process, one resident network.")]
