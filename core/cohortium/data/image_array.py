"""Many image files as one array, decoded one by one into memory that is allocated once."""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cohortium.data.image_file import ImageFileOptions, decode, decode_mask
from cohortium.data.memory import available
from cohortium.data.npz import MAX_ARRAY_BYTES
from cohortium.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Decoder = Callable[[Path, ImageFileOptions], NDArray[Any]]

THREADS: Final = 4
"""Largest number of threads that decode. Each holds one decoded file."""

_PART: Final = 256
"""Number of files after which a fault stops the others."""


def read_image_array(
    files: Sequence[Path],
    options: ImageFileOptions,
    *,
    where: Callable[[int], str] | None = None,
) -> NDArray[Any]:
    """Return the images of files in their order, shape (N, C, H, W) or (N, C, D, H, W).

    Args:
        files: One file or more.
        options: Declared ways to read them.
        where: The place that names file i, such as a line of a table, if there is one.

    Raises:
        DataError: A file cannot be read. Or two differ in shape or type, and are named. Or the
            images do not fit into memory.
    """
    return _read(files, options, decode, where)


def read_mask_array(
    files: Sequence[Path],
    options: ImageFileOptions,
    *,
    where: Callable[[int], str] | None = None,
) -> NDArray[np.uint8]:
    """Return the masks of files in their order, shape (N, H, W) or (N, D, H, W).

    Args:
        files: One file or more.
        options: Declared ways to read them. Masks are resized by copying the nearest label.
        where: The place that names file i, such as a line of a table, if there is one.

    Raises:
        DataError: A file is no mask or cannot be read, or two differ in shape.
    """
    return _read(files, options, decode_mask, where)


def _read(
    files: Sequence[Path],
    options: ImageFileOptions,
    decoder: Decoder,
    where: Callable[[int], str] | None,
) -> NDArray[Any]:
    def load(index: int) -> NDArray[Any]:
        try:
            return decoder(files[index], options)
        except DataError as error:
            if where is None:
                raise
            raise DataError(f"{where(index)}: {error}") from error

    def name(index: int) -> str:
        return str(files[index]) if where is None else f"{where(index)}: {files[index]}"

    def fill(index: int) -> None:
        image = load(index)
        if image.shape != first.shape or image.dtype != first.dtype:
            raise DataError(
                f"{name(index)} has {_worded(image)}, and {files[0]} has {_worded(first)}; "
                "declare size = [height, width] of the data set, or bring the files to one form."
            )
        array[index] = image

    # Threads share the filters of warnings, so that they are set once around all of them.
    with warnings.catch_warnings(action="ignore"):
        first = load(0)
        _require_room(first, files)
        array = np.empty((len(files), *first.shape), first.dtype)
        array[0] = first
        with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
            for start in range(1, len(files), _PART):
                # Results come in order, so that the first fault is always the one reported.
                for _ in pool.map(fill, range(start, min(start + _PART, len(files)))):
                    pass
    return array


def _require_room(first: NDArray[Any], files: Sequence[Path]) -> None:
    size, most = first.nbytes * len(files), min(MAX_ARRAY_BYTES, available() // 2)
    if size > most:
        raise DataError(
            f"{len(files)} images like {files[0]} take {size / 2**30:.1f} GiB, and at most "
            f"{most / 2**30:.1f} GiB can be read in the memory there is; declare a smaller size = "
            "[height, width] of the data set, or read fewer images."
        )


def _worded(image: NDArray[Any]) -> str:
    *channels, height, width = image.shape
    many = f"{channels[0]} channel{'s' if channels[0] > 1 else ''} of " if channels else ""
    depth = f"{channels[1]} × " if len(channels) > 1 else ""
    return f"{many}{depth}{height} × {width} pixels as {image.dtype}"
