"""Examples of the files that a table lists, read by the code of one file format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import field, frozen

from cohortium.data.image_array import THREADS, stack_files
from cohortium.data.image_file import IMAGE_SUFFIXES, resize_image, resize_mask
from cohortium.data.readable_files import stack_readable_files

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from cohortium.data.file_reader import MaskFormat
    from cohortium.data.image_file import ImageFileOptions
    from cohortium.data.survey import DataSurvey


@frozen(kw_only=True, eq=False)
class ListedExample:
    """Content of the files of one row.

    Attributes:
        image: The image, shape (C, H, W) or (C, D, H, W).
        mask: The label of each pixel, shape (H, W) or (D, H, W), or None without a mask.
        patient: Identifier of the patient, if the files name one. It becomes a number under the
            site's key (see `pseudonyms`), and is not kept.
        notes: Facts about the files for a look at the data: kind and value, such as the window and
            its numbers. None may name a patient.
        mask_format: Format of a predicted mask on the image, or None for the usual ones.
    """

    image: NDArray[Any] = field(repr=False)
    mask: NDArray[np.uint8] | None = field(default=None, repr=False)
    patient: str | None = field(default=None, repr=False)
    notes: tuple[tuple[str, str], ...] = ()
    mask_format: MaskFormat | None = None


@frozen(kw_only=True)
class ListedFormat:
    """A format of the files that a table lists.

    Attributes:
        read: Reads the files of one row: an image, and its mask or None.
        suffixes: Endings of images, in lower case. Without any, all names are accepted.
        mask_suffixes: Endings of masks, in lower case.
        has_folders: Whether a row may list a folder, which `read` takes for one image.
        num_threads: Largest number of threads that may call `read` at once.
    """

    read: Callable[[Path, Path | None], ListedExample]
    suffixes: tuple[str, ...] = IMAGE_SUFFIXES
    mask_suffixes: tuple[str, ...] = IMAGE_SUFFIXES
    has_folders: bool = False
    num_threads: int = THREADS


@frozen(kw_only=True, eq=False)
class ListedArrays:
    """Content of the files of all rows.

    Attributes:
        images: The images, shape (N, C, …).
        masks: The masks, shape (N, …), or None without masks.
        patients: Identifier of each patient, N of them, or None if files name none.
        rows: Position of each example among the given files, shape (N,).
    """

    images: NDArray[Any] = field(repr=False)
    masks: NDArray[np.uint8] | None = field(repr=False)
    patients: tuple[str, ...] | None = field(repr=False)
    rows: NDArray[np.int64] = field(repr=False)


def read_listed(
    file_format: ListedFormat,
    files: Sequence[Path],
    masks: Sequence[Path] | None,
    options: ImageFileOptions,
    *,
    where: Callable[[int], str],
    survey: DataSurvey | None = None,
) -> ListedArrays:
    """Return the content of the files of all rows.

    Args:
        file_format: The format of the files.
        files: The image of each row.
        masks: The mask of each row, or None.
        options: The declared size and method of resizing.
        where: The place that names row i.
        survey: Takes the reason of each row that cannot be read. Without it, the first such row is
            an error.

    Raises:
        DataError: A file cannot be read, or two differ in shape or type. The sentence names the
            row.
    """
    patients: dict[int, str] = {}
    notes: dict[int, tuple[tuple[str, str], ...]] = {}

    def read(row: int) -> tuple[NDArray[Any], ...]:
        mask_path = None if masks is None else masks[row]
        example = file_format.read(files[row], mask_path)
        if example.patient is not None:
            patients[row] = example.patient
        notes[row] = example.notes
        image = resize_image(example.image, files[row], options)
        if mask_path is None:
            return (image,)
        assert example.mask is not None
        return image, resize_mask(example.mask, mask_path, options)

    paths, threads = [files] if masks is None else [files, masks], file_format.num_threads
    if survey is None:
        arrays = stack_files(paths, read, where=where, num_threads=threads)
        rows = np.arange(len(files))
    else:
        rows, arrays = stack_readable_files(paths, read, survey, where=where, num_threads=threads)
        for row in rows.tolist():
            for kind, value in notes[row]:
                survey.note(kind, value)
    named = tuple(patients[row] for row in rows.tolist() if row in patients)
    return ListedArrays(
        images=arrays[0],
        masks=None if masks is None else arrays[1],
        patients=named if len(named) == len(rows) else None,
        rows=rows,
    )
