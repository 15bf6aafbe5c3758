"""The files of a data set that can be read, as arrays, with the reasons for the others."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import define, field

from cohortium.data.image_array import (
    PART,
    THREADS,
    Form,
    differing,
    form_of,
    with_place,
    worded,
)
from cohortium.data.image_file import ImageFileOptions, decode_image
from cohortium.data.scratch import new_array
from cohortium.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from cohortium.data.survey import DataSurvey


def read_readable_images(
    files: Sequence[Path], options: ImageFileOptions, survey: DataSurvey
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Return the images of the files that can be read, with the positions of those files.

    Args:
        files: The files.
        options: Declared ways to read them.
        survey: Takes the reason of each refused file.

    Raises:
        DataError: No file can be read, or there is no room for the images.
    """
    kept, (images,) = stack_readable_files(
        [files], lambda i: (decode_image(files[i], options),), survey
    )
    return kept, images


def stack_readable_files(
    files: Sequence[Sequence[Path]],
    read: Callable[[int], tuple[NDArray[Any], ...]],
    survey: DataSurvey,
    *,
    where: Callable[[int], str] | None = None,
    num_threads: int = THREADS,
) -> tuple[NDArray[np.int64], tuple[NDArray[Any], ...]]:
    """Return the arrays of the examples that can be read, and have the most frequent form.

    Large arrays are in files without a name. Files are read twice if the first one has a rare form.

    Args:
        files: The files of each of the K arrays, such as images and masks, N of each.
        read: Returns the K arrays of example i.
        survey: Takes the reason of each refused example.
        where: The place that names example i, such as a line of a table, if there is one.
        num_threads: Largest number of threads that may call `read` at once.

    Returns:
        The positions of the examples, shape (M,), and the K arrays.

    Raises:
        DataError: No example can be read, or there is no room for the arrays.
    """
    count = len(files[0])
    reading = _Reading(with_place(read, where))
    with (
        warnings.catch_warnings(action="ignore"),
        ThreadPoolExecutor(min(num_threads, os.cpu_count() or 1)) as pool,
    ):
        reading.pool = pool
        form = reading.first_form(count)
        if form is not None:
            arrays = _new_arrays(count, form)
            reading.fill(count, arrays, form)
            if (common := reading.common_form()) != form:
                form, arrays = common, _new_arrays(count, common)
                reading.fill(count, arrays, form)
    if form is not None:
        _refuse_others(files, reading, form, where)
    for index in sorted(reading.faults):
        survey.refuse(reading.faults[index])
    if form is None:
        raise DataError(f"none of {count:,} files can be read; see the reason of each.")
    kept = reading.indices_of(form)
    for array in arrays:
        _close_gaps(array, kept)
    return kept, tuple(array[: len(kept)] for array in arrays)


@define
class _Reading:
    """Content of files, as far as it can be read.

    Attributes:
        load: Returns the arrays of an example.
        faults: Reason of each example that cannot be read.
        forms: Forms of the arrays of each other example.
        pool: Threads that read.
    """

    load: Callable[[int], tuple[NDArray[Any], ...]]
    faults: dict[int, str] = field(factory=dict)
    forms: dict[int, tuple[Form, ...]] = field(factory=dict)
    pool: ThreadPoolExecutor = field(init=False)

    def first_form(self, count: int) -> tuple[Form, ...] | None:
        """Return the forms of the first example that can be read, or None."""
        for index in range(count):
            if self._read(index) is not None:
                return self.forms[index]
        return None

    def common_form(self) -> tuple[Form, ...]:
        """Return the most frequent form, the first one of several."""
        return Counter(self.forms[i] for i in sorted(self.forms)).most_common(1)[0][0]

    def indices_of(self, form: tuple[Form, ...]) -> NDArray[np.int64]:
        """Return the examples of a form, in order."""
        return np.array([i for i in sorted(self.forms) if self.forms[i] == form], dtype=np.int64)

    def fill(self, count: int, arrays: tuple[NDArray[Any], ...], form: tuple[Form, ...]) -> None:
        """Read all examples, and put those of `form` into the rows of `arrays`."""

        def fill_row(index: int) -> None:
            found = self._read(index)
            if found is not None and self.forms[index] == form:
                for array, one in zip(arrays, found, strict=True):
                    array[index] = one

        for start in range(0, count, PART):
            for _ in self.pool.map(fill_row, range(start, min(start + PART, count))):
                pass

    def _read(self, index: int) -> tuple[NDArray[Any], ...] | None:
        try:
            found = self.load(index)
        except DataError as error:
            self.faults[index] = str(error)
            return None
        self.forms[index] = tuple(map(form_of, found))
        return found


def _new_arrays(count: int, forms: tuple[Form, ...]) -> tuple[NDArray[Any], ...]:
    try:
        return tuple(new_array((count, *shape), dtype) for shape, dtype in forms)
    except OSError as error:
        raise DataError(
            f"{count:,} images of {worded(*forms[0])} have no room in the folder of temporary "
            f"files ({error.strerror}); name another one with TMPDIR."
        ) from error


def _refuse_others(
    files: Sequence[Sequence[Path]],
    reading: _Reading,
    form: tuple[Form, ...],
    where: Callable[[int], str] | None,
) -> None:
    """Refuse the examples that have another form."""
    like = int(reading.indices_of(form)[0])
    for index, other in reading.forms.items():
        if other != form:
            place = "" if where is None else f"{where(index)}: "
            k = next(k for k, one in enumerate(form) if one != other[k])
            reading.faults[index] = place + differing(
                files[k][index], other[k], files[k][like], form[k]
            )


def _close_gaps(array: NDArray[Any], kept: NDArray[np.int64]) -> None:
    """Move the rows `kept` of an array to its beginning."""
    for place, index in enumerate(kept.tolist()):
        if place != index:
            array[place] = array[index]
