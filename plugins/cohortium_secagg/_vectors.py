"""Masking of whole vectors at a site, and unmasking at the coordinator.

A vector is processed in its packed pieces.  Each thread takes a contiguous run of pieces.  The
result has the same bits for any number of threads.  (The slow parts, the cipher and NumPy's loops,
run without the interpreter's lock.)
"""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from cohortium_secagg._masks import apply

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cohortium.plugin import Ring, RingBlock
    from cohortium_secagg._masks import Mask, Words


def available_cpus() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def masked(words: Words, masks: Sequence[Mask], ring: Ring, *, threads: int) -> memoryview:
    """Return the elements `words` under `masks`, packed.

    In addition to the packed vector, no more is held than a piece for each thread.
    """
    out = memoryview(bytearray(ring.bytes_for(len(words))))

    def work(pieces: Sequence[RingBlock]) -> None:
        copy = np.empty_like(words[pieces[0].values])
        for piece in pieces:
            part = copy[: piece.values.stop - piece.values.start]
            np.copyto(part, words[piece.values])
            apply(masks, part, piece=piece.number)
            ring.pack_piece(part, out[piece.packed])

    _share(work, ring.pieces(len(words)), threads)
    return out


def unmask(total: Words, masks: Sequence[Mask], ring: Ring, *, threads: int) -> None:
    """Apply `masks` to `total` in place."""

    def work(pieces: Sequence[RingBlock]) -> None:
        for piece in pieces:
            apply(masks, total[piece.values], piece=piece.number)

    _share(work, ring.pieces(len(total)), threads)


def _share(
    work: Callable[[Sequence[RingBlock]], None], pieces: Sequence[RingBlock], threads: int
) -> None:
    """Run `work` on all `pieces`, a contiguous run in each of `threads`."""
    count = max(1, min(threads, len(pieces)))
    bounds = [len(pieces) * number // count for number in range(count + 1)]
    runs = [pieces[begin:end] for begin, end in itertools.pairwise(bounds) if begin < end]
    if count == 1:
        for run in runs:
            work(run)
        return
    with ThreadPoolExecutor(count) as pool:
        for _ in pool.map(work, runs):
            """Wait for each run, and raise its error."""
