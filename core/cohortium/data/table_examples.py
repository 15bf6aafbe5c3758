"""Examples of the files that a table lists, read by the code of one file format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from cohortium.data.image_array import THREADS, stack_files
from cohortium.data.image_file import IMAGE_SUFFIXES, resize_image, resize_mask

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from cohortium.data.image_file import ImageFileOptions


@frozen(kw_only=True, eq=False)
class ListedExample:
    """Content of the files of one row.

    Attributes:
        image: The image, shape (C, H, W) or (C, D, H, W).
        mask: The label of each pixel, shape (H, W) or (D, H, W), or None without a mask.
        patient: Identifier of the patient, if the files name one. It becomes a number under the
            site's key (see `pseudonyms`), and is not kept.
    """

    image: NDArray[Any] = field(repr=False)
    mask: NDArray[np.uint8] | None = field(default=None, repr=False)
    patient: str | None = field(default=None, repr=False)


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
    """

    images: NDArray[Any] = field(repr=False)
    masks: NDArray[np.uint8] | None = field(repr=False)
    patients: tuple[str, ...] | None = field(repr=False)


def read_listed(
    file_format: ListedFormat,
    files: Sequence[Path],
    masks: Sequence[Path] | None,
    options: ImageFileOptions,
    *,
    where: Callable[[int], str],
) -> ListedArrays:
    """Return the content of the files of all rows.

    Args:
        file_format: The format of the files.
        files: The image of each row.
        masks: The mask of each row, or None.
        options: The declared size and method of resizing.
        where: The place that names row i.

    Raises:
        DataError: A file cannot be read, or two differ in shape or type. The sentence names the
            row.
    """
    patients: dict[int, str] = {}

    def read(row: int) -> tuple[NDArray[Any], ...]:
        mask_path = None if masks is None else masks[row]
        example = file_format.read(files[row], mask_path)
        if example.patient is not None:
            patients[row] = example.patient
        image = resize_image(example.image, files[row], options)
        if mask_path is None:
            return (image,)
        assert example.mask is not None
        return image, resize_mask(example.mask, mask_path, options)

    arrays = stack_files(
        [files] if masks is None else [files, masks],
        read,
        where=where,
        num_threads=file_format.num_threads,
    )
    named = tuple(patients[row] for row in range(len(files)) if row in patients)
    return ListedArrays(
        images=arrays[0],
        masks=None if masks is None else arrays[1],
        patients=named if len(named) == len(files) else None,
    )
