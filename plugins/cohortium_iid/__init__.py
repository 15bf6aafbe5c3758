"""Sites as random samples of one size: the easy case, for comparison."""

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
    """Equal parts of the shuffled examples.

    Sizes differ by at most one.  Classes are not stratified: the class shares of a site vary as
    those of a random sample do.
    """

    def partition(
        self, examples: Examples, num_sites: int, rng: np.random.Generator
    ) -> list[NDArray[np.int64]]:
        """Return ascending positions for each site.

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
