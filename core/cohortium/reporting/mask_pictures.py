"""Pictures of test images with their true and predicted masks, read strictly from a record."""

from __future__ import annotations

import zipfile
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from attrs import field, frozen

from cohortium.data.npz_archive import reworded_faults
from cohortium.errors import DataError, RecordError
from cohortium.reporting.thumbnails import overlaid, picture_uri
from cohortium.runs.mask_examples import COLOURS, MASK_EXAMPLES, MAX_EXAMPLES, MAX_SIDE
from cohortium.storage.bounded_read import read_if_present

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

MAX_BYTES: Final = 1 << 22
"""Most bytes of the file, and of its arrays."""


@frozen(kw_only=True)
class MaskPictures:
    """One test image as pictures, each as a `data:` URI.

    Attributes:
        image: The image.
        truth: The image with its true mask.
        called: The image with its predicted mask.
        has_few_pixels: Whether each pixel is shown as a square.
    """

    image: str = field(repr=False)
    truth: str = field(repr=False)
    called: str = field(repr=False)
    has_few_pixels: bool = False


def mask_pictures(folder: Path) -> tuple[MaskPictures, ...]:
    """Return the pictures of the run in `folder`, none if it stored no masks.

    Raises:
        RecordError: The file is damaged, too large, or cannot be read.
    """
    path = folder / MASK_EXAMPLES
    data = read_if_present(path, MAX_BYTES, RecordError)
    if data is None:
        return ()
    try:
        with reworded_faults(path):
            images, truth, called = _arrays(data)
    except (DataError, KeyError) as error:
        raise RecordError(f"{path} is damaged: it holds no images with masks.") from error
    few = max(images.shape[1:3]) <= MAX_SIDE // 2
    return tuple(
        MaskPictures(
            image=picture_uri(image),
            truth=picture_uri(overlaid(image, true)),
            called=picture_uri(overlaid(image, guess)),
            has_few_pixels=few,
        )
        for image, true, guess in zip(images, truth, called, strict=True)
    )


def _arrays(data: bytes) -> tuple[NDArray[Any], ...]:
    """Return the images and the two masks of each.

    Raises:
        ValueError: They are too large, or of another form.
    """
    with zipfile.ZipFile(BytesIO(data)) as archive:
        if sum(each.file_size for each in archive.infolist()) > MAX_BYTES:
            raise ValueError("too large")
    with np.load(BytesIO(data), allow_pickle=False) as stored:
        images, *masks = (stored[name] for name in ("images", "truth", "called"))
    count, *size = images.shape[:3]
    is_form = images.shape == (count, *size, COLOURS) and 0 < count <= MAX_EXAMPLES
    is_small = len(size) == 2 and all(0 < side <= MAX_SIDE for side in size)  # noqa: PLR2004
    is_masks = all(mask.shape == (count, *size) for mask in masks)
    if not (is_form and is_small and is_masks):
        raise ValueError("another form")
    if any(array.dtype != np.uint8 for array in (images, *masks)):
        raise ValueError("another type")
    return images, *masks
