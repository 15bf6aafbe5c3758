"""Elements of a few bits each, side by side in words: the lanes in which a ring vector travels.

As many lanes as a word has bits, each of the same number of elements, lie one above another, like
the digits of long numbers.  So every shift works on whole lanes, and on as many together as begin
in rows one after another.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Lanes: TypeAlias = NDArray[np.unsignedinteger[Any]]
    """Words, shape (rows, n)."""


class LaneRun(NamedTuple):
    """Lanes that begin in rows one after another.

    Attributes:
        lanes: Which.
        rows: Where they begin.
        shifts: From which bit on, shape (lanes, 1).
        across: Those of them that go on in the next row.
        next: Where they do.
        overs: How many of their bits come before, shape (lanes across, 1).
    """

    lanes: slice
    rows: slice
    shifts: Lanes
    across: slice
    next: slice
    overs: Lanes


def runs(bits: int, word: np.dtype[Any]) -> tuple[LaneRun, ...]:
    """The lanes of `bits` bits in the words `word`: one lane for each bit of a word."""
    width = 8 * word.itemsize
    starts = [divmod(lane * bits, width) for lane in range(width)]
    cuts = [lane for lane in range(1, width) if starts[lane][0] != starts[lane - 1][0] + 1]
    return tuple(
        _run(begin, starts[begin:end], bits, word)
        for begin, end in itertools.pairwise([0, *cuts, width])
    )


def _run(begin: int, starts: Sequence[tuple[int, int]], bits: int, word: np.dtype[Any]) -> LaneRun:
    """The lanes from `begin` on, which start at these rows and bits."""
    width, first = 8 * word.itemsize, starts[0][0]
    shifts = np.array([[shift] for _, shift in starts], word)
    # One that does not cross ends its row, or shares it with the next: it is at an end of the run.
    across = [lane for lane, (_, shift) in enumerate(starts) if shift + bits > width]
    inner = slice(across[0], across[-1] + 1) if across else slice(0, 0)
    return LaneRun(
        lanes=slice(begin, begin + len(starts)),
        rows=slice(first, first + len(starts)),
        shifts=shifts,
        across=inner,
        next=slice(first + inner.start + 1, first + inner.stop + 1),
        overs=(width - shifts[inner]).astype(word),
    )


def pack(values: Lanes, out: Lanes, lanes: Sequence[LaneRun]) -> None:
    """Lay the lowest bits of `values` (w, n) into `out` (bits, n), which is all zero."""
    low = values.dtype.type((1 << len(out)) - 1)
    for run in lanes:
        lowest = np.bitwise_and(values[run.lanes], low)
        np.right_shift(lowest[run.across], run.overs, out=out[run.next])
        np.left_shift(lowest, run.shifts, out=lowest)
        np.bitwise_or(out[run.rows], lowest, out=out[run.rows])


def add_packed(packed: Lanes, total: Lanes, lanes: Sequence[LaneRun]) -> None:
    """Add what `packed` (bits, n) holds to `total` (w, n), modulo 2**bits.

    What lies above a lane is added too, above the bits of the sum that count.
    """
    for run in lanes:
        part = total[run.lanes]
        np.add(part, packed[run.rows] >> run.shifts, out=part)
        part = part[run.across]
        np.add(part, packed[run.next] << run.overs, out=part)
