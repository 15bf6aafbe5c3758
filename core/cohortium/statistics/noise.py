"""Noise of a measured sum."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cohortium.privacy.guarantee import Guarantee


def noise_of_sum(guarantee: Guarantee | None, contributors: int) -> float:
    """Return the standard deviation of the noise on each value of a sum of rows.

    Rows have a norm of at most 1, and one row replaced by another moves a sum by at most 2.
    Sites that share the noise are more than the guarantee counts on, if none drops out.

    Args:
        guarantee: Guarantee of the measurement, or None without noise.
        contributors: Number of sites in the sum.
    """
    if guarantee is None:
        return 0.0
    sensitivity = 2 if guarantee.adjacency == "replace-one" else 1
    return guarantee.noise_multiplier * sensitivity * math.sqrt(contributors / guarantee.honest)
