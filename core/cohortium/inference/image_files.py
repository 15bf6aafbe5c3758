"""Reading of images to classify: npz file, folder, or single files.

Every image is used unchanged or refused. Nothing is resized, cropped, recoloured or turned, because
a network trained on one kind of image says nothing about another.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cohortium.data.examples import to_c_order
from cohortium.data.npz import read_images
from cohortium.data.picture import open_picture, require_one_page, to_array
from cohortium.data.pixels import FLAT
from cohortium.errors import DataError
from cohortium.text import escape_control_characters

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from cohortium.data.examples import DataSpec

SUFFIXES: Final = (".jpeg", ".jpg", ".png")
"""Suffixes of picture files that are read."""

MODES: Final = {1: "L", 3: "RGB"}
"""Pillow's name for 8 bits a channel, by the number of channels."""

BATCH: Final = 512
"""Most picture files in memory at a time."""

MAX_LOADED_BYTES: Final = 1 << 28
"""Most bytes of their pixels in memory at a time."""

Batch = tuple[list[str], "NDArray[Any]"]
"""Names of some images, with the images, shape (N, C, …)."""


def read(places: Sequence[Path], spec: DataSpec, *, split: str) -> Iterator[Batch]:
    """Yield images in batches, in the order of `places`.

    Files within a folder are in the order of their names.

    Args:
        places: npz files, folders of picture files, or picture files.
        spec: The required form of the images.
        split: Of an npz file in MedMNIST's layout.

    Raises:
        DataError: There are no images, or one cannot be read or is of another kind. The message
            names the first such image.
    """
    files: list[Path] = []
    for place in places:
        if place.is_dir():
            files += _pictures_in(place)
        elif place.suffix.lower() == ".npz":
            yield from _of_files(files, spec)
            files = []
            yield _of_archive(place, spec, split=split)
        elif place.suffix.lower() in SUFFIXES:
            files.append(place)
        else:
            raise DataError(
                f"{place} is no image that can be read here; give npz, PNG or JPEG files, or a "
                "folder of the latter two."
            )
    yield from _of_files(files, spec)


def _pictures_in(folder: Path) -> list[Path]:
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}.") from error
    if not found:
        raise DataError(f"the folder {folder} holds no PNG or JPEG file.")
    return found


def _of_archive(path: Path, spec: DataSpec, *, split: str) -> Batch:
    images = read_images(path, split=split, shape=spec.shape)
    if len(images) == 0:
        raise DataError(f"{path} holds no images; give a file that does.")
    _require(images.shape[1:], spec, where=f"{path}: its images have")
    return [f"{path.name}#{number}" for number in range(len(images))], images


def _of_files(files: Sequence[Path], spec: DataSpec) -> Iterator[Batch]:
    step = max(1, min(BATCH, MAX_LOADED_BYTES // math.prod(spec.shape)))
    for start in range(0, len(files), step):
        part = files[start : start + step]
        pixels = np.stack([_picture(path, spec) for path in part])
        yield [escape_control_characters(str(path)) for path in part], to_c_order(pixels)


def _picture(path: Path, spec: DataSpec) -> NDArray[np.uint8]:
    """Return one picture, shape (C, H, W).

    Its header is compared with `spec` before any pixel is decompressed.
    """
    if len(spec.size) != FLAT:
        raise DataError(
            f"{path}: the model takes volumes, and a picture file is flat; give an npz file."
        )
    if spec.channels not in MODES:
        raise DataError(
            f"{path}: the model takes {spec.channels} channels, which no picture file has; give "
            "an npz file."
        )
    with warnings.catch_warnings(action="ignore"), open_picture(path, _FORMATS) as image:
        channels = len(image.getbands())
        _require((channels, image.height, image.width), spec, where=f"{path} has")
        if image.mode != MODES[spec.channels]:
            raise DataError(
                f"{path} is of mode {image.mode}, and the model takes {MODES[spec.channels]} "
                "(8 bits a channel); convert it."
            )
        require_one_page(image, path)
        return to_array(image, path)


_FORMATS: Final = ("PNG", "JPEG")
"""Decoders that Pillow may use. No other decoder ever opens a file."""


def _require(shape: tuple[int, ...], spec: DataSpec, *, where: str) -> None:
    wanted = spec.shape
    if shape != wanted:
        raise DataError(
            f"{where} {_worded(shape)}, and the model takes {_worded(wanted)}; bring them to that "
            "as the training images were."
        )


def _worded(shape: tuple[int, ...]) -> str:
    channels, *size = shape
    return f"{channels} channel{'s' if channels > 1 else ''} of {' × '.join(map(str, size))} pixels"
