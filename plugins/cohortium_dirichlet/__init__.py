"""Label skew: every class has its own proportions over the sites.

>>> Dirichlet(alpha=0.1, min_size=20)
Dirichlet(alpha=0.1, min_size=20)

This is the usual benchmark of unlike hospitals (Yurochkin et al. 2019, section 4, and NIID-Bench,
Li et al. 2022).  It leaves out the usual loop that draws anew until no site is too small.  That
loop changes the distribution, and with a small `alpha` or many sites it never ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from attrs import field, frozen
from attrs.validators import ge, le

from cohortium.plugin import Offer, Partitioner, StudyError, hookimpl

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cohortium.plugin import Examples

COHORTIUM_API = 1


@frozen(kw_only=True)
class Dirichlet:
    """Class k goes to the sites in proportions from Dir(alpha, …, alpha).

    The sizes of the sites differ as well, the more the smaller `alpha` is.  A site with fewer than
    `min_size` examples then gets exactly as many as it lacks, from the largest sites.

    Attributes:
        alpha: Concentration, from 1e-6 (each class at one site) to 1e6 (classes alike everywhere).
        min_size: Fewest examples at a site.
    """

    alpha: float = field(default=0.5, validator=[ge(1e-6), le(1e6)])
    min_size: int = field(default=10, validator=[ge(1), le(10**9)])

    def partition(
        self, examples: Examples, num_sites: int, rng: np.random.Generator
    ) -> list[NDArray[np.int64]]:
        """Return ascending positions for each site.

        Guarantees:
            Every example goes to exactly one site, and every site gets at least `min_size`.

        Raises:
            StudyError: There are too few examples for `min_size` at every site.
        """
        if num_sites * self.min_size > len(examples):
            raise StudyError(
                f"dirichlet: {num_sites} sites of at least {self.min_size} examples take "
                f"{num_sites * self.min_size}, but there are {len(examples)}; lower sites or "
                f"min_size."
            )
        labels, numbers = np.unique(examples.labels, return_counts=True)
        shares = rng.dirichlet(np.full(num_sites, self.alpha), size=len(labels))  # (classes, sites)
        # Rounding where each site's part *ends* keeps every sum, and each part within one example.
        ends = np.rint(numbers[:, None] * shares.cumsum(axis=1)).astype(np.int64)
        counts = np.diff(ends, axis=1, prepend=0)
        _level(counts, self.min_size)
        dealt: list[list[NDArray[np.int64]]] = [[] for _ in range(num_sites)]
        for label, row in zip(labels, counts, strict=True):
            order = rng.permutation(np.flatnonzero(examples.labels == label)).astype(np.int64)
            for parts, part in zip(dealt, np.split(order, row.cumsum()[:-1]), strict=True):
                parts.append(part)
        return [np.sort(np.concatenate(parts)) for parts in dealt]


def _level(counts: NDArray[np.int64], least: int) -> None:
    """Raise every site of `counts` to `least` examples, in place.

    `counts` has shape (classes, sites).  Each example is taken from the site that is largest at
    that time, and from its most frequent class.  This changes the donor's mix least.  It also gives
    the small site few classes, as befits label skew.

    While a site lacks examples, the largest has more than the mean, which is `least` or more.  So
    no site falls below `least` by giving, and no move is ever undone.  So the number of moves is
    the least possible.
    """
    sizes = counts.sum(axis=0)
    for site in np.flatnonzero(sizes < least):
        while sizes[site] < least:
            donor = sizes.argmax()
            label = counts[:, donor].argmax()
            counts[label, [donor, site]] += (-1, 1)
            sizes[[donor, site]] += (-1, 1)


@hookimpl
def cohortium_partitioners() -> list[Offer[Partitioner]]:
    """Offer `dirichlet`."""
    return [Offer("dirichlet", Dirichlet, "Label skew: each class in Dirichlet proportions.")]
