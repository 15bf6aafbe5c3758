"""Reading of images to classify: npz file, folder, or single files.

Files are read as the study's data set reads its own, with the size that it declares. Without such a
data set every image is used unchanged or refused. Nothing is cropped, recoloured or turned, because
a network trained on one kind of image says nothing about another.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from attrs import field, frozen

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
    from cohortium.data.file_reader import FileImage, FileReader

SUFFIXES: Final = (".jpeg", ".jpg", ".png")
"""Suffixes of picture files that are read."""

MODES: Final = {1: "L", 3: "RGB"}
"""Pillow's name for 8 bits a channel, by the number of channels."""

BATCH: Final = 512
"""Most picture files in memory at a time."""

MAX_LOADED_BYTES: Final = 1 << 28
"""Most bytes of their pixels in memory at a time."""


@frozen(kw_only=True, eq=False)
class Batch:
    """Some images.

    Attributes:
        names: Their names.
        images: The images, shape (N, C, …).
        sources: Each image's file as the data set reads it, N of them. None for an image that was
            read unchanged.
    """

    names: list[str]
    images: NDArray[Any] = field(repr=False)
    sources: list[FileImage | None] = field(repr=False)


def read(
    places: Sequence[Path], spec: DataSpec, *, split: str, reader: FileReader | None = None
) -> Iterator[Batch]:
    """Yield images in batches, in the order of `places`.

    Files within a folder are in the order of their names.

    Args:
        places: npz files, folders of image files, or image files.
        spec: The required form of the images.
        split: Of an npz file in MedMNIST's layout.
        reader: Reads files as the study's data set does, or None for pictures alone.

    Raises:
        DataError: There are no images, or one cannot be read or is of another kind. The message
            names the first such image.
    """
    files: list[Path] = []
    for place in places:
        if place.is_dir():
            files += _files_in(place, reader)
        elif place.suffix.lower() == ".npz":
            yield from _of_files(files, spec, reader)
            files = []
            yield _of_archive(place, spec, split=split)
        elif _is_readable(place, reader):
            files.append(place)
        else:
            kinds = " or ".join(_suffixes(reader))
            raise DataError(
                f"{place} is no image that can be read here; give npz files, files that end in "
                f"{kinds}, or a folder of the latter."
            )
    yield from _of_files(files, spec, reader)


def _suffixes(reader: FileReader | None) -> tuple[str, ...]:
    return SUFFIXES if reader is None else tuple(dict.fromkeys((*SUFFIXES, *reader.suffixes)))


def _is_readable(path: Path, reader: FileReader | None) -> bool:
    is_any = reader is not None and not reader.suffixes
    return is_any or path.name.lower().endswith(_suffixes(reader))


def _files_in(folder: Path, reader: FileReader | None) -> list[Path]:
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}.") from error
    found = [path for path in inside if _is_readable(path, reader)]
    if not found:
        kinds = "PNG or JPEG file" if reader is None else " or ".join(_suffixes(reader)) + " file"
        has_folders = any(path.is_dir() for path in inside)
        remedy = "give the folders in it, each by itself" if has_folders else "give another one"
        raise DataError(f"the folder {folder} holds no {kinds}; {remedy}.")
    return found


def _of_archive(path: Path, spec: DataSpec, *, split: str) -> Batch:
    images = read_images(path, split=split, shape=spec.shape)
    if len(images) == 0:
        raise DataError(f"{path} holds no images; give a file that does.")
    _require(images.shape[1:], spec, where=f"{path}: its images have")
    names = [f"{path.name}#{number}" for number in range(len(images))]
    return Batch(names=names, images=images, sources=[None] * len(images))


def _of_files(files: Sequence[Path], spec: DataSpec, reader: FileReader | None) -> Iterator[Batch]:
    step = max(1, min(BATCH, MAX_LOADED_BYTES // math.prod(spec.shape)))
    for start in range(0, len(files), step):
        part = files[start : start + step]
        names = [escape_control_characters(str(path)) for path in part]
        sources: list[FileImage | None] = [None] * len(part)
        if reader is None:
            pixels = [_picture(path, spec) for path in part]
        else:
            found = [_as_the_study(path, spec, reader) for path in part]
            pixels = [source.pixels for source in found]
            sources = [*found]
        yield Batch(names=names, images=to_c_order(np.stack(pixels)), sources=sources)


def _as_the_study(path: Path, spec: DataSpec, reader: FileReader) -> FileImage:
    """Return a file as the study's data set reads it."""
    found = reader.read(path)
    _require(found.pixels.shape, spec, where=f"{path} has")
    if found.pixels.dtype != spec.pixel_type:
        raise DataError(
            f"{path} has {found.pixels.dtype} values, and the model takes {spec.pixel_type}; bring "
            "it to that as the training images were."
        )
    return found


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
