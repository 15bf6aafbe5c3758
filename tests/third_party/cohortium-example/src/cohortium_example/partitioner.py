"""A partitioner: the examples in turn, one site after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

from cohortium.plugin import StudyError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cohortium.plugin import Examples


@frozen
class Alternating:
    """Example i goes to site i modulo the number of sites; nothing is drawn."""

    def partition(
        self,
        examples: Examples,
        num_sites: int,
        rng: np.random.Generator,
    ) -> list[NDArray[np.int64]]:
        """Positions for each site.

        Raises:
            StudyError: There are more sites than examples.
        """
        if num_sites > len(examples):
            raise StudyError(
                f"alternating: {len(examples)} examples are too few for {num_sites} sites."
            )
        return [
            np.arange(site, len(examples), num_sites, dtype=np.int64) for site in range(num_sites)
        ]
