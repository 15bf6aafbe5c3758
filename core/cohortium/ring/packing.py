"""Packing of ring elements, of a few bits each, into words.

A ring vector travels in this form. The elements are in as many lanes as a word has bits, each with
the same number of elements. The lanes are in rows of words, one above another, like the digits of
long numbers. So every shift works on whole lanes, and on all lanes together that begin in
consecutive rows.
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
    """Lanes that begin in consecutive rows.

    Attributes:
        lanes: The lanes.
        rows: Rows in which they begin.
        shifts: First bit of each lane, shape (lanes, 1).
        across: Those lanes that continue in the next row.
        next: Rows in which they continue.
        overs: Number of their bits in their first row, shape (lanes across, 1).
    """

    lanes: slice
    rows: slice
    shifts: Lanes
    across: slice
    next: slice
    overs: Lanes


def runs(bits: int, word: np.dtype[Any]) -> tuple[LaneRun, ...]:
    """Return the lanes of `bits` bits in the words `word`.

    There is one lane for each bit of a word.
    """
    width = 8 * word.itemsize
    starts = [divmod(lane * bits, width) for lane in range(width)]
    cuts = [lane for lane in range(1, width) if starts[lane][0] != starts[lane - 1][0] + 1]
    return tuple(
        _run(begin, starts[begin:end], bits, word)
        for begin, end in itertools.pairwise([0, *cuts, width])
    )


def _run(begin: int, starts: Sequence[tuple[int, int]], bits: int, word: np.dtype[Any]) -> LaneRun:
    """Return the lanes from `begin` on, with their rows and bits."""
    width, first = 8 * word.itemsize, starts[0][0]
    shifts = np.array([[shift] for _, shift in starts], word)
    # A lane that does not cross ends its row, or shares it with the next: it is at an end of the
    # run.
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
    """Write the lowest bits of `values` into `out`, which is all zero.

    `values` has the shape (w, n), and `out` the shape (bits, n).
    """
    low = values.dtype.type((1 << len(out)) - 1)
    for run in lanes:
        lowest = np.bitwise_and(values[run.lanes], low)
        np.right_shift(lowest[run.across], run.overs, out=out[run.next])
        np.left_shift(lowest, run.shifts, out=lowest)
        np.bitwise_or(out[run.rows], lowest, out=out[run.rows])


def add_packed(packed: Lanes, total: Lanes, lanes: Sequence[LaneRun]) -> None:
    """Add the elements in `packed` to `total`, modulo 2**bits.

    `packed` has the shape (bits, n), and `total` the shape (w, n).

    Bits above a lane are added too, above the bits of the sum that count.
    """
    for run in lanes:
        part = total[run.lanes]
        np.add(part, packed[run.rows] >> run.shifts, out=part)
        part = part[run.across]
        np.add(part, packed[run.next] << run.overs, out=part)
