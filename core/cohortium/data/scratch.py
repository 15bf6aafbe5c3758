"""Arrays that may be larger than memory, in unnamed files.

The file has no name from the start, so it ends with its process, also when that is killed. No other
process can open it. It lies in the folder of temporary files (`TMPDIR`).
"""

from __future__ import annotations

import math
import os
import tempfile
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

MAX_MEMORY_BYTES: Final = 1 << 28
"""Largest array, in bytes, that is kept in memory: 256 MiB."""


def new_array(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return an array with arbitrary content, in memory if it is small, else in a file.

    Raises:
        OSError: There is no room for the file.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size <= MAX_MEMORY_BYTES:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile() as file:
        # The room is reserved: to write into a mapped file on a full disk would end the process.
        os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, dtype=dtype, mode="r+", shape=shape)


def copied(array: NDArray[Any]) -> NDArray[Any]:
    """Return a copy of `array` in C order, made part by part."""
    whole = new_array(array.shape, array.dtype)
    step = max(1, MAX_MEMORY_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), step):
        whole[start : start + step] = array[start : start + step]
    return whole


def select(array: NDArray[Any], index: NDArray[np.int64]) -> NDArray[Any]:
    """Return the rows of `array` at `index`, copied part by part."""
    chosen = new_array((len(index), *array.shape[1:]), array.dtype)
    step = max(1, MAX_MEMORY_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(index), step):
        part = slice(start, start + step)
        np.take(array, index[part], axis=0, out=chosen[part])
    return chosen
