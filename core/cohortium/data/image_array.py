"""Many image files as one array, decoded one by one into memory that is allocated once."""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from cohortium.data.image_file import ImageFileOptions, decode_image, decode_mask
from cohortium.data.memory import available
from cohortium.data.npz_archive import MAX_ARRAY_BYTES
from cohortium.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

THREADS: Final = 4
"""Largest number of threads that decode. Each holds one decoded file."""

_SIZE: Final = "declare size = [height, width] of the data set, or bring the files to one size"
_ONE_SIZE: Final = "bring the files to one size"
_TYPE: Final = "size does not change types, so save the files with one type, such as 8 bits"
_CHANNELS: Final = "size does not change channels, so save the files all in grey, or all in colour"
_FLAT: Final = 3
"""Number of axes of a flat image with channels."""

PART: Final = 256
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
    (images,) = stack_files([files], lambda i: (decode_image(files[i], options),), where=where)
    return images


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
    (masks,) = stack_files([files], lambda i: (decode_mask(files[i], options),), where=where)
    return masks


def stack_files(
    files: Sequence[Sequence[Path]],
    read: Callable[[int], tuple[NDArray[Any], ...]],
    *,
    where: Callable[[int], str] | None = None,
    num_threads: int = THREADS,
) -> tuple[NDArray[Any], ...]:
    """Return the arrays of examples in their order, each stacked in memory allocated once.

    Args:
        files: The files of each of the K arrays, such as images and masks, N of each.
        read: Returns the K arrays of example i. Each has the same types for every i.
        where: The place that names example i, such as a line of a table, if there is one.
        num_threads: Largest number of threads that may call `read` at once.

    Raises:
        DataError: A file cannot be read. Or two differ in shape or type, and are named. Or the
            arrays do not fit into memory.
    """
    load = with_place(read, where)

    def fill(index: int) -> None:
        for one, one_first, array, paths in zip(load(index), first, arrays, files, strict=True):
            if one.shape != one_first.shape or one.dtype != one_first.dtype:
                place = "" if where is None else f"{where(index)}: "
                raise DataError(
                    f"{place}{differing(paths[index], form_of(one), paths[0], form_of(one_first))}"
                )
            array[index] = one

    count = len(files[0])
    # Threads share the filters of warnings, so that they are set once around all of them.
    with warnings.catch_warnings(action="ignore"):
        first = load(0)
        _require_room(sum(array.nbytes for array in first), files[0])
        arrays = tuple(np.empty((count, *array.shape), array.dtype) for array in first)
        for array, one in zip(arrays, first, strict=True):
            array[0] = one
        with ThreadPoolExecutor(min(num_threads, os.cpu_count() or 1)) as pool:
            for start in range(1, count, PART):
                # Results come in order, so that the first fault is always the one reported.
                for _ in pool.map(fill, range(start, min(start + PART, count))):
                    pass
    return arrays


def _require_room(num_bytes: int, files: Sequence[Path]) -> None:
    size, most = num_bytes * len(files), min(MAX_ARRAY_BYTES, available() // 2)
    if size > most:
        raise DataError(
            f"{len(files)} images like {files[0]} take {size / 2**30:.1f} GiB, and at most "
            f"{most / 2**30:.1f} GiB can be read in the memory there is; declare a smaller size = "
            "[height, width] of the data set, or read fewer images."
        )


Form: TypeAlias = tuple[tuple[int, ...], str]
"""Shape and type of an array."""


def form_of(array: NDArray[Any]) -> Form:
    """Return shape and type of an array."""
    return array.shape, array.dtype.name


def with_place(
    read: Callable[[int], tuple[NDArray[Any], ...]], where: Callable[[int], str] | None
) -> Callable[[int], tuple[NDArray[Any], ...]]:
    """Return `read`, whose errors name the place of the example."""

    def load(index: int) -> tuple[NDArray[Any], ...]:
        try:
            return read(index)
        except DataError as error:
            if where is None:
                raise
            raise DataError(f"{where(index)}: {error}") from error

    return load


def differing(path: Path, form: Form, like: Path, expected: Form) -> str:
    """Return a sentence about the file `path`, whose form is not that of the file `like`."""
    return (
        f"{path} has {worded(*form)}, and {like} has {worded(*expected)}; "
        f"{_remedy(form, expected)}."
    )


def _remedy(form: Form, expected: Form) -> str:
    """Return what helps against each difference of two forms."""
    (shape, dtype), (other, other_dtype) = form, expected
    if len(shape) != len(other):
        return "bring the files to one form"
    is_flat = len(shape) <= _FLAT
    size = 2 if is_flat else 3
    differences = {
        _TYPE: dtype != other_dtype,
        _CHANNELS: shape[:-size] != other[:-size],
        _SIZE if is_flat else _ONE_SIZE: shape[-size:] != other[-size:],
    }
    return "; ".join(advice for advice, differs in differences.items() if differs)


def worded(shape: tuple[int, ...], dtype: str) -> str:
    """Return the form of an image for a sentence."""
    *channels, height, width = shape
    many = f"{channels[0]} channel{'s' if channels[0] > 1 else ''} of " if channels else ""
    depth = f"{channels[1]} × " if len(channels) > 1 else ""
    return f"{many}{depth}{height} × {width} pixels as {dtype}"
