"""Writing of predicted masks: one file for each image, in a new folder."""

from __future__ import annotations

import io
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cohortium.data.pixels import FLAT
from cohortium.data.resize import resize
from cohortium.errors import RequestError, RunError
from cohortium.storage.atomic import atomic_create
from cohortium.storage.writable import check_directory_writable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from cohortium.data.examples import DataSpec
    from cohortium.data.file_reader import FileImage

MAX_STEM: Final = 80
"""Most characters of an image's name in the name of its mask."""

COLOURS: Final = 256
"""Colours of a palette."""


def check_new_folder(folder: Path, spec: DataSpec) -> None:
    """Refuse masks that cannot be written, before the work.

    Raises:
        RequestError: The model predicts no masks, or `folder` exists or cannot be written.
    """
    if spec.output_shape[1:] != spec.size:
        raise RequestError(
            "the run's model predicts no class for each pixel, so there are no masks; leave out "
            "--masks."
        )
    if folder.exists() or folder.is_symlink():
        raise RequestError(f"{folder} exists already; give another folder with --masks.")
    check_directory_writable(folder)


def require_mappable(name: str, source: FileImage, spec: DataSpec) -> None:
    """Refuse an image on which no mask of the model can lie.

    Raises:
        RequestError: The image was resized, and is no flat image.
    """
    if source.size != spec.size and not len(source.size) == len(spec.size) == FLAT:
        raise RequestError(
            f"{name} has {_shown(source.size)} voxels, to which no mask of {_shown(spec.size)} can "
            "be scaled back; leave out --masks, or give an image of that size."
        )


def write(
    folder: Path,
    names: Sequence[str],
    masks: NDArray[Any],
    *,
    start: int,
    sources: Sequence[FileImage | None] | None = None,
) -> list[str]:
    """Write the masks of a batch of images, and return the names of their files.

    A mask of an image that was resized is scaled back to the size of its file by copying the
    nearest class. If the image's format has one for masks, as NIfTI does, the mask has it.
    Otherwise a flat mask is a PNG file whose palette indices are classes, and a volume is an npy
    file.

    Args:
        folder: It is created if it is missing.
        names: Of the images, in any characters.
        masks: Numbers of classes, shape (N, H, W) or (N, D, H, W).
        start: Number of masks already written.
        sources: The images as read from files, or None for each that was read unchanged.

    Guarantees:
        Each file is whole, in `folder` itself, and replaces no other file.

    Raises:
        RunError: A file cannot be written.
    """
    written = []
    of_each = [None] * len(names) if sources is None else sources
    for number, (name, mask, source) in enumerate(zip(names, masks, of_each, strict=True), start):
        suffix, data = _encoded(mask, source)
        path = folder / f"{number:06d}-{_stem(name)}{suffix}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            atomic_create(path, data)
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror}.") from error
        written.append(path.name)
    return written


def _encoded(mask: NDArray[Any], source: FileImage | None) -> tuple[str, bytes]:
    """Return the suffix and the content of a mask's file."""
    if source is not None:
        if mask.shape != source.size:
            height, width = source.size
            mask = resize(mask[None].astype(np.uint8), (height, width), "nearest")[0]
        if source.mask_format is not None:
            return source.mask_format.suffix, source.mask_format.encode(mask)
    return (".png", _png(mask)) if mask.ndim == FLAT else (".npy", _npy(mask))


def _shown(size: tuple[int, ...]) -> str:
    return " × ".join(map(str, size))


def _stem(name: str) -> str:
    """Return the last part of an image's name, in characters that every file system has."""
    last = PurePosixPath(name.replace("\\", "/")).name
    return re.sub(r"[^A-Za-z0-9_-]+", "-", last).strip("-")[:MAX_STEM] or "image"


def _png(mask: NDArray[Any]) -> bytes:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(mask, dtype=np.uint8))
    image.putpalette(_palette())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _npy(mask: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(mask, dtype=np.uint8), allow_pickle=False)
    return buffer.getvalue()


def _palette() -> list[int]:
    """Return the colours of the classes as R, G, B, with a black background.

    They are those of the masks of Pascal VOC. Bits of the number, the lowest first, become the
    highest bits of the three channels in turn.
    """
    return [
        sum((number >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3))
        for number in range(COLOURS)
        for channel in range(3)
    ]
