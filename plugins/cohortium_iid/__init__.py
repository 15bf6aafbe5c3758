"""Every site a random sample of the whole, all of one size: the easy case, to compare with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

from cohortium.plugin import Offer, Partitioner, StudyError, hookimpl

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cohortium.plugin import Examples

COHORTIUM_API = 1


@frozen(kw_only=True)
class IID:
    """Shuffle, then cut into equal parts.

    Sizes differ by at most one.  Classes are not stratified: a site's class shares scatter about
    the whole's as those of a random sample do.
    """

    def partition(
        self, examples: Examples, num_sites: int, rng: np.random.Generator
    ) -> list[NDArray[np.int64]]:
        """Positions for each site, ascending.

        Raises:
            StudyError: There are more sites than examples.
        """
        if num_sites > len(examples):
            raise StudyError(
                f"iid: {len(examples)} examples cannot be split over {num_sites} sites; lower "
                f"sites."
            )
        order = rng.permutation(len(examples)).astype(np.int64)
        return [np.sort(part) for part in np.array_split(order, num_sites)]


@hookimpl
def cohortium_partitioners() -> list[Offer[Partitioner]]:
    """Offer `iid`."""
    return [Offer("iid", IID, "Equal random parts: no skew.")]
