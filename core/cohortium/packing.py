"""Elements of a few bits each, side by side in words: the lanes in which a ring vector travels.

As many lanes as a word has bits, each of the same number of elements, lie one above another, like
the digits of long numbers.  So every shift works on a whole lane.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import DTypeLike, NDArray

    Lanes: TypeAlias = NDArray[np.unsignedinteger[Any]]
    """Words, shape (rows, n)."""


class Place(NamedTuple):
    """Where a lane lies: from bit `shift` of `row` on; its first `over` bits, if it goes on.

    Numbers are arrays without dimensions, which NumPy takes in half the time of its scalars.
    """

    row: int
    shift: NDArray[Any] | None
    over: NDArray[Any] | None


def places(bits: int, word: DTypeLike) -> tuple[Place, ...]:
    """Where each lane of `bits` bits begins, one above another; one lane for each bit of a word."""
    width = 8 * np.dtype(word).itemsize
    starts = [divmod(lane * bits, width) for lane in range(width)]
    return tuple(
        Place(
            row,
            np.array(shift, word) if shift else None,
            np.array(width - shift, word) if shift + bits > width else None,
        )
        for row, shift in starts
    )


def pack(values: Lanes, out: Lanes, lanes: Sequence[Place]) -> None:
    """Lay the lowest bits of `values` (w, n) into all of `out` (bits, n)."""
    low = np.array((1 << len(out)) - 1, values.dtype)
    lowest, spare, rows = np.empty_like(values[0]), np.empty_like(values[0]), list(out)
    for value, (row, shift, over) in zip(values, lanes, strict=True):
        np.bitwise_and(value, low, out=rows[row] if shift is None else lowest)
        if shift is not None:
            np.left_shift(lowest, shift, out=spare)
            np.bitwise_or(rows[row], spare, out=rows[row])
        if over is not None:
            # Nothing lies in the next row yet.
            np.right_shift(lowest, over, out=rows[row + 1])


def add(packed: Lanes, total: Lanes, lanes: Sequence[Place]) -> None:
    """Add what `packed` (bits, n) holds to `total` (w, n), modulo 2**bits.

    What lies above a lane is added too, above the bits of the sum that count.
    """
    spare, rows = np.empty_like(total[0]), list(packed)
    for value, (row, shift, over) in zip(total, lanes, strict=True):
        if shift is None:
            np.add(value, rows[row], out=value)
        else:
            np.right_shift(rows[row], shift, out=spare)
            np.add(value, spare, out=value)
        if over is not None:
            np.left_shift(rows[row + 1], over, out=spare)
            np.add(value, spare, out=value)
