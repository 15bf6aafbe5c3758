"""Size skew: sites have similar patients, but many or few of them.

There are two ways to choose the sizes: `quantity` draws them, `quantity-pairs` fixes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from attrs import field, frozen
from attrs.validators import ge, le, lt

from cohortium.plugin import Offer, Partitioner, StudyError, hookimpl

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cohortium.plugin import Examples

COHORTIUM_API = 1


@frozen(kw_only=True)
class Quantity:
    """Random parts whose sizes follow a Dirichlet distribution.

    The scheme is that of NIID-Bench (Li et al. 2022).  Every site first gets `min_size` examples.
    The rest is divided in proportions drawn from Dir(alpha, …, alpha).  So the sizes are drawn only
    once.

    Attributes:
        alpha: Concentration, from 1e-6 (all the rest at one site) to 1e6 (equal sizes).
        min_size: Fewest examples at a site.
    """

    alpha: float = field(default=0.5, validator=[ge(1e-6), le(1e6)])
    min_size: int = field(default=10, validator=[ge(1), le(10**9)])

    def partition(
        self, examples: Examples, num_sites: int, rng: np.random.Generator
    ) -> list[NDArray[np.int64]]:
        """Return ascending positions for each site.

        Raises:
            StudyError: There are too few examples for `min_size` at every site.
        """
        rest = len(examples) - num_sites * self.min_size
        if rest < 0:
            raise StudyError(
                f"quantity: {num_sites} sites of at least {self.min_size} examples take "
                f"{num_sites * self.min_size}, but there are {len(examples)}; lower sites or "
                f"min_size."
            )
        shares = rng.dirichlet(np.full(num_sites, self.alpha))
        ends = np.rint(rest * shares.cumsum()).astype(np.int64)
        ends += self.min_size * np.arange(1, num_sites + 1)
        order = rng.permutation(len(examples)).astype(np.int64)
        return [np.sort(part) for part in np.split(order, ends[:-1])]


@frozen(kw_only=True)
class QuantityPairs:
    """Contiguous slices of equal size, altered in pairs.

    Of each pair, one site gains the examples that the other one loses.  Examples are taken in the
    data's own order and nothing is drawn.  So a data set that is sorted by class gives label skew
    too.  An odd last site keeps its slice.  This follows the published code of Haj Fares and Saad
    (arXiv:2412.00687), whose share may be another.

    Attributes:
        shift: Share of its equal slice that the second site of each pair gives to the first.
    """

    shift: float = field(default=0.5, validator=[ge(0), lt(1)])

    def partition(
        self,
        examples: Examples,
        num_sites: int,
        rng: np.random.Generator,  # noqa: ARG002 - the slices leave nothing to chance
    ) -> list[NDArray[np.int64]]:
        """Return ascending positions for each site.

        Raises:
            StudyError: There are more sites than examples.
        """
        size = len(examples) // num_sites
        if size == 0:
            raise StudyError(
                f"quantity-pairs: {len(examples)} examples cannot be split over {num_sites} sites; "
                "lower sites."
            )
        ends = np.arange(1, num_sites + 1) * len(examples) // num_sites
        ends[0 : num_sites - 1 : 2] += int(self.shift * size)
        return np.split(np.arange(len(examples), dtype=np.int64), ends[:-1])


@hookimpl
def cohortium_partitioners() -> list[Offer[Partitioner]]:
    """Offer `quantity` and `quantity-pairs`."""
    return [
        Offer("quantity", Quantity, "Random parts of Dirichlet-distributed sizes."),
        Offer("quantity-pairs", QuantityPairs, "Contiguous slices, sizes altered in pairs."),
    ]
