"""An engine: sites in this process, asked in a shuffled order."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from cohortium.plugin import StudyError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cohortium.plugin import SiteFactory, SiteHandle, SiteId


@frozen
class AnyOrder:
    """Shows that nothing depends on who answers first.

    Attributes:
        seed: Of the order.
    """

    seed: int = 0

    def connect(self, sites: Mapping[SiteId, SiteFactory] | None) -> AnyOrderExchange:
        """Make every site beside the first, so that all share one network.

        Raises:
            StudyError: The sites are hospitals of their own.
        """
        if sites is None:
            raise StudyError("the engine 'any-order' simulates its sites; choose another.")
        made: dict[SiteId, SiteHandle] = {}
        for site, recipe in sites.items():
            made[site] = recipe.create(share_model_with=next(iter(made.values()), None))
        return AnyOrderExchange(made, random.Random(self.seed))


@define
class AnyOrderExchange:
    """Calls sites, and yields what they say."""

    _sites: dict[SiteId, SiteHandle]
    _random: random.Random = field(repr=False)

    def exchange(
        self, broadcast: bytes, per_site: Mapping[SiteId, bytes], timeout: float | None = None
    ) -> Iterator[tuple[SiteId, bytes]]:
        """Ask those in `per_site`, in a new order every time."""
        for site in self._random.sample(sorted(per_site), len(per_site)):
            began = time.monotonic()
            reply = self._sites[site].answer(broadcast, per_site[site])
            if timeout is None or time.monotonic() - began <= timeout:
                yield site, reply

    def close(self) -> None:
        """Forget the sites."""
        self._sites = {}
