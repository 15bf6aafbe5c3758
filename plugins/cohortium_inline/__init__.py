"""All sites in this process, in turn, with one resident network."""

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
    """Runs sites in turn, without a copy of the model for each."""

    def connect(self, sites: Mapping[SiteId, SiteFactory] | None) -> InlineExchange:
        """Create every site, so that all share the first one's model."""
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
    """Calls to each site, whose reply is dropped if too late."""

    sites: Mapping[SiteId, SiteHandle]
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)

    def exchange(
        self, broadcast: bytes, per_site: Mapping[SiteId, bytes], timeout: float | None = None
    ) -> Iterator[tuple[SiteId, bytes]]:
        """Yield the replies of one site after the other.

        The sites come in the order of `per_site`, and none of them is interrupted.
        """
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
