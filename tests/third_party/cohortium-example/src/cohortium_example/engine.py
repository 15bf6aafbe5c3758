"""An engine: sites in this process, asked in a shuffled order."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from cohortium.plugin import StudyError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cohortium.plugin import OpenSite, SiteId, SiteRecipe


@frozen
class AnyOrder:
    """Shows that nothing depends on who answers first.

    Attributes:
        seed: Of the order.
    """

    seed: int = 0

    def open(self, sites: Mapping[SiteId, SiteRecipe] | None) -> AnyOrderExchange:
        """Make every site beside the first, so that all share one network.

        Raises:
            StudyError: The sites are hospitals of their own.
        """
        if sites is None:
            raise StudyError("the engine 'any-order' simulates its sites; choose another.")
        made: dict[SiteId, OpenSite] = {}
        for site, recipe in sites.items():
            made[site] = recipe.open(beside=next(iter(made.values()), None))
        return AnyOrderExchange(made, random.Random(self.seed))


@define
class AnyOrderExchange:
    """Calls sites, and yields what they say."""

    _sites: dict[SiteId, OpenSite]
    _random: random.Random = field(repr=False)

    def exchange(
        self, common: bytes, each: Mapping[SiteId, bytes], deadline: float | None = None
    ) -> Iterator[tuple[SiteId, bytes]]:
        """Ask those in `each`, in a new order every time."""
        for site in self._random.sample(sorted(each), len(each)):
            began = time.monotonic()
            reply = self._sites[site].answer(common, each[site])
            if deadline is None or time.monotonic() - began <= deadline:
                yield site, reply

    def close(self) -> None:
        """Forget the sites."""
        self._sites = {}
