"""Picture files, opened with Pillow: each is read as it is, or refused.

A file may come from anyone. Only the decoders of `FORMATS` ever open it, its size is bounded before
memory is allocated, and every fault is one sentence.

Pillow converts some files without a word. It keeps 8 of 16 bits of a colour, drops extra samples of
TIFF, and shows signed values as unsigned. This module refuses those files.
"""

from __future__ import annotations

import stat
import struct
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cohortium.data.examples import MAX_PIXELS
from cohortium.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from PIL.Image import Image

FORMATS: Final = ("PNG", "JPEG", "TIFF")
"""Decoders that Pillow may use."""

ORIENTATION: Final = 0x0112
"""The EXIF tag that makes a viewer turn a picture."""

_BITS: Final = 258
_PHOTOMETRIC: Final = 262
_SAMPLES: Final = 277
_SAMPLE_FORMAT: Final = 339
"""Tags of TIFF: bits of each sample, the meaning of 0, samples of a pixel, and their type."""

_BYTE: Final = 8
"""Bits of a channel that Pillow keeps in colour."""

_SIGNED: Final = 2
"""A sample's type in TIFF: a signed number."""

_SMALL: Final = 1 << 24
_DENSITY: Final = 1 << 12
"""Number of values that any file may claim, and that a larger file may claim for each byte.

Deflate makes at most 1032 bytes of one.
"""

_UNREADABLE: Final = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""Errors that Pillow raises over damaged files.

They are the known ones.
"""

_TO_UINT16: Final = frozenset({"I;16", "I;16B", "I;16L", "I;16N", "I;16R", "I;12"})
_TO_INT16: Final = frozenset({"I;16S", "I;16BS", "I;16NS"})
_TO_FLOAT32: Final = frozenset({"F;32F", "F;32BF", "F;32NF"})
"""Pillow's names of stored values that fit into a type."""


@contextmanager
def open_picture(path: Path, formats: tuple[str, ...] = FORMATS) -> Iterator[Image]:
    """Open a picture file, of which no pixel is decoded yet.

    The caller must ignore warnings of Pillow around the call. Pillow warns of large pictures, which
    are refused here, and of odd metadata.

    Args:
        path: The file.
        formats: The formats that it may have. Its suffix says nothing about that.

    Raises:
        DataError: The file is missing, damaged, of another format or too large. So is every fault
            that Pillow finds while the file is open.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"{path} is no file; give a file for each image.")
        with Image.open(path, formats=formats) as image:
            _require_bounded(image, path)
            yield image
    except UnidentifiedImageError as error:
        known = f"{', '.join(formats[:-1])} or {formats[-1]}"
        raise DataError(
            f"{path} is no {known} file, despite its name, or one of a kind that is not read."
        ) from error
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path} has far more pixels than an image may have; cut it into smaller ones."
        ) from error
    except _UNREADABLE as error:
        if isinstance(error, OSError) and error.strerror:
            raise DataError(f"cannot read {path}: {error.strerror}.") from error
        reason = str(error).rstrip(".") or type(error).__name__
        raise DataError(
            f"cannot read {path}: {' '.join(reason.split())}; copy it anew, or export it again."
        ) from error


def require_one_page(image: Image, path: Path, advice: str = "") -> None:
    """Refuse a file of several pictures.

    Args:
        image: The opened file.
        path: Its path.
        advice: A further remedy, which ends the error's sentence.

    Raises:
        DataError: The file has a second picture.
    """
    if seek(image, 1):
        raise DataError(
            f"{path} has several pictures (pages or frames); save each in a file of its "
            f"own{advice}."
        )
    seek(image, 0)


def seek(image: Image, page: int) -> bool:
    """Move to a page, and return whether the file has it."""
    try:
        image.seek(page)
    except EOFError:
        return False
    return True


def to_array(image: Image, path: Path) -> NDArray[Any]:
    """Return the pixels of an opened picture, shape (C, H, W).

    Grey and colour of 8 bits become `uint8`, grey of 16 bits `uint16` or `int16`, and numbers of
    TIFF `float32`. A picture of 1 bit has the values 0 and 255. A palette becomes grey if all its
    colours are, and else colour. Transparency is dropped if every pixel is opaque.

    Raises:
        DataError: A conversion would lose something or could be made in several ways. Or the file
            asks its viewer to turn it.
    """
    dtype = _stored_type(image, path)
    _require_upright(image, path)
    if dtype != np.uint8:
        if "transparency" in image.info:
            raise _transparent(path)
        return np.asarray(image).astype(dtype)[None]
    if image.mode in ("P", "PA"):
        image = _from_palette(image, path)
    elif image.mode == "1":
        image = image.convert("L")
    if "transparency" in image.info and image.mode in ("L", "RGB"):
        image = image.convert({"L": "LA", "RGB": "RGBA"}[image.mode])
    pixels = np.asarray(image, dtype=np.uint8)
    if image.mode in ("LA", "RGBA"):
        if (pixels[..., -1] != np.iinfo(np.uint8).max).any():
            raise _transparent(path)
        pixels = pixels[..., :-1]
    return np.ascontiguousarray(pixels.reshape(image.height, image.width, -1).transpose(2, 0, 1))


def to_mask(image: Image, path: Path) -> NDArray[np.uint8]:
    """Return the labels of an opened picture's pixels, shape (H, W).

    Grey of 8 bits is unchanged, 1 bit becomes 0 and 1, and a palette's colours their numbers.

    Raises:
        DataError: The picture has another form.
    """
    if image.mode not in ("1", "L", "P") or _stored_type(image, path) != np.uint8:
        raise DataError(
            f"{path} is of mode {image.mode}, which is no mask; save one label for each pixel, "
            "as 8-bit grey."
        )
    _require_upright(image, path)
    return np.asarray(image).astype(np.uint8)


def _require_bounded(image: Image, path: Path) -> None:
    """Refuse a picture whose header claims too much, before memory is allocated for it."""
    values = image.width * image.height * len(image.getbands())
    if values > MAX_PIXELS:
        raise DataError(
            f"{path} has {values:,} values, and an image may have {MAX_PIXELS:,}; cut it into "
            "smaller ones."
        )
    if not values:
        raise DataError(f"{path} has no pixels; leave it out.")
    if values > max(_SMALL, _DENSITY * path.stat().st_size):
        raise DataError(
            f"{path} claims {values:,} values, which its size cannot hold; copy it anew."
        )


def _require_upright(image: Image, path: Path) -> None:
    """Refuse a picture that is to be turned.

    PNG may say so behind its pixels, which Pillow decodes for that.
    """
    if image.getexif().get(ORIENTATION, 1) != 1:
        raise DataError(
            f"{path} asks its viewer to turn it (EXIF orientation); save it as it is to be looked "
            "at."
        )


def _stored_type(image: Image, path: Path) -> type[np.generic]:
    """Return the type that has every stored value of a picture.

    No pixel may be decoded before, because Pillow then forgets how it was stored.

    Raises:
        DataError: Pillow would change values, or has no such type.
    """
    stored = {tile[3] if isinstance(tile[3], str) else tile[3][0] for tile in image.tile}  # type: ignore[attr-defined]
    tags = getattr(image, "tag_v2", {})
    is_positive = tags.get(_PHOTOMETRIC, 1) == 1
    if image.mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        # Pillow omits the bits where the channels of a TIFF file are apart.
        if any(";16" in name for name in stored) or max(tags.get(_BITS, (1,))) > _BYTE:
            raise DataError(
                f"{path} has 16 bits a channel and several channels, of which Pillow keeps 8 "
                "bits; save it with 8 bits a channel, or as an npy file."
            )
        if stored and tags.get(_SAMPLES, len(image.getbands())) == len(image.getbands()):
            if _SIGNED not in tags.get(_SAMPLE_FORMAT, ()):
                return np.uint8
            raise DataError(f"{path} has signed values of 8 bits; save it as 16-bit grey.")
    elif image.mode[0] in "IF" and is_positive:
        for names, dtype in (
            (_TO_UINT16, np.uint16), (_TO_INT16, np.int16), (_TO_FLOAT32, np.float32)
        ):  # fmt: skip
            if stored and stored <= names:
                return dtype
    elif image.mode[0] in "IF":
        raise DataError(f"{path} stores white as 0 in more than 8 bits; save it with black as 0.")
    raise DataError(
        f"{path} is of mode {image.mode}, stored as {', '.join(sorted(stored)) or 'nothing'}, "
        "which is not read; convert it to grey or RGB of 8 bits, or to grey of 16 bits."
    )


def _from_palette(image: Image, path: Path) -> Image:
    """Return a picture with its colours instead of their numbers."""
    palette = np.array(image.getpalette() or (), dtype=np.uint8).reshape(-1, 3)
    numbers = np.asarray(image.getchannel(0))
    if numbers.max() >= len(palette):
        raise DataError(f"{path} has colours that its palette lacks; convert it to grey or RGB.")
    is_grey = bool((palette == palette[:, :1]).all())
    has_alpha = image.mode == "PA" or "transparency" in image.info
    mode = ("L" if is_grey else "RGB") + ("A" if has_alpha else "")
    # Pillow has no direct way from a palette to grey with transparency that keeps every value.
    return image.convert("RGBA").convert("LA") if mode == "LA" else image.convert(mode)


def _transparent(path: Path) -> DataError:
    return DataError(
        f"{path} has transparent pixels, whose colour depends on the background; save it without "
        "transparency."
    )
