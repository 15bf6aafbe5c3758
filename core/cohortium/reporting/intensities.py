"""The stored intensities of images, counted part by part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

BINS: Final = 64
"""Largest number of bars of a histogram."""

_PART: Final = 1 << 22
"""Number of values that are counted at a time."""


@frozen(kw_only=True)
class Intensities:
    """Stored values of images.

    Attributes:
        low: The smallest one.
        high: The largest one.
        below: Share of values below the declared range.
        above: Share of values above the declared range.
        bars: Share of values in each of equal parts from `low` to `high`.
    """

    low: float
    high: float
    below: float
    above: float
    bars: tuple[float, ...]


def count_intensities(
    arrays: Sequence[NDArray[Any]], declared: tuple[float, float] | None
) -> Intensities:
    """Count the values of arrays, which may be larger than memory.

    Args:
        arrays: Arrays of images, of which one has a value.
        declared: The declared range, or None.
    """
    ends = [(part.min(), part.max()) for part in _parts(arrays)]
    low, high = float(min(a for a, _ in ends)), float(max(b for _, b in ends))
    is_whole = arrays[0].dtype.kind in "iu"
    count = min(BINS, int(high - low) + 1) if is_whole else BINS
    # Each bar of whole numbers begins between two of them.
    edges = np.linspace(low - 0.5, high + 0.5, count + 1) if is_whole else None
    if edges is None:
        edges = np.linspace(low, high if high > low else low + 1, count + 1)
    bars, below, above, total = np.zeros(count, np.int64), 0, 0, 0
    for part in _parts(arrays):
        bars += np.histogram(part, bins=count, range=(float(edges[0]), float(edges[-1])))[0]
        total += part.size
        if declared is not None:
            below += int((part < declared[0]).sum())
            above += int((part > declared[1]).sum())
    return Intensities(
        low=low,
        high=high,
        below=below / total,
        above=above / total,
        bars=tuple((bars / total).tolist()),
    )


def _parts(arrays: Sequence[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    for array in arrays:
        flat = array.reshape(-1)
        for start in range(0, len(flat), _PART):
            yield flat[start : start + _PART]
