"""Skellam and Poisson variables of large mean, from a party's own stream."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cohortium.plugin import KeyStream

    Reals = NDArray[np.float64]

MIN_MEAN = 100.0
"""Least mean: below it these approximations lose digits.  Useful noise is far above."""

AT_ONCE = 1 << 16
"""Number of variables that are drawn together."""

_SERIES = 24
"""Terms of a power series that is used up to a tenth.  The rest is below a part in 2⁵³."""


def skellam(size: int, variance: float, stream: KeyStream) -> NDArray[np.int64]:
    """Draw `size` independent Skellam variables of mean 0, shape (size,)."""
    mean = variance / 2
    drawn = poisson(size, mean, stream)
    drawn -= poisson(size, mean, stream)
    return drawn


def poisson(size: int, mean: float, stream: KeyStream) -> NDArray[np.int64]:
    """Draw `size` independent Poisson variables, shape (size,).

    Transformed rejection with a squeeze (Hörmann 1993, algorithm PTRS), in double precision.

    Raises:
        ValueError: `mean` is below `MIN_MEAN`.
    """
    if mean < MIN_MEAN:
        raise ValueError(f"a mean of {mean:g} is below {MIN_MEAN:g}.")
    out = np.empty(size, dtype=np.int64)
    for start in range(0, size, AT_ONCE):
        piece = out[start : start + AT_ONCE]
        missing = np.arange(len(piece))
        while len(missing):
            drawn, is_taken = _proposals(len(missing), mean, stream)
            piece[missing[is_taken]] = drawn[is_taken]
            missing = missing[~is_taken]
    return out


def _proposals(size: int, mean: float, stream: KeyStream) -> tuple[Reals, NDArray[np.bool_]]:
    """Draw whole numbers near `mean`, and mark the accepted ones."""
    b = 0.931 + 2.53 * math.sqrt(mean)
    a = -0.059 + 0.02483 * b
    inverse = 1.1239 + 1.1328 / (b - 3.4)
    u, v = stream.uniform(size) - 0.5, 1.0 - stream.uniform(size)
    edge = np.maximum(0.5 - np.abs(u), 2.0**-54)
    k = np.floor((2 * a / edge + b) * u + mean + 0.43)
    is_taken = (edge >= 0.07) & (v <= 0.9277 - 3.6224 / (b - 2))  # noqa: PLR2004 - the algorithm's
    is_open = ~is_taken & (k >= 1) & ((edge >= 0.013) | (v <= edge))  # noqa: PLR2004
    height = np.log(v * inverse / (a / edge**2 + b))
    is_taken[is_open] = height[is_open] <= log_chance(k[is_open], mean)
    return k, is_taken


def log_chance(k: Reals, mean: float) -> Reals:
    """Return the logarithm of the Poisson probability of each k ≥ 1.

    It is computed by its deviance (Loader 2000).  The plain formula subtracts numbers of the size
    of `mean` from one another.  This one does not.
    """
    x = (k - mean) / mean
    series = np.zeros_like(x)
    for n in range(_SERIES, -1, -1):
        series = 1 / ((n + 1) * (n + 2)) - x * series
    with np.errstate(invalid="ignore"):
        exact = (1 + x) * np.log1p(x) - x
    deviance = mean * np.where(np.abs(x) < 0.1, x * x * series, exact)  # noqa: PLR2004
    stirling = 1 / (12 * k) - 1 / (360 * k**3)
    chance: Reals = -deviance - 0.5 * np.log(2 * math.pi * k) - stirling
    return chance
