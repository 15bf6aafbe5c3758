"""One image from a PNG, JPEG, TIFF or npy file.

    from cohortium.plugin import ImageFileOptions, read_image

    image = read_image(Path("chest.png"), ImageFileOptions(size=(224, 224)))  # (1, 224, 224)

Every image is read in the one way that it can be, or refused. Only a declared size changes it.
"""

from __future__ import annotations

import itertools
import warnings
from typing import TYPE_CHECKING, Any, Final, get_args

import numpy as np
from attrs import Attribute, field, frozen

from cohortium.data.examples import MAX_PIXELS
from cohortium.data.npy import UNREADABLE, read_npy
from cohortium.data.picture import open_picture, require_one_page, seek, to_array, to_mask
from cohortium.data.pixels import FLAT, Layout, to_channels_first
from cohortium.data.resize import Resize, resize
from cohortium.errors import DataError, StudyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from PIL.Image import Image

IMAGE_SUFFIXES: Final = (".jpeg", ".jpg", ".npy", ".png", ".tif", ".tiff")
"""Suffixes of files that `read_image` reads, in lower case."""

MAX_SIDE: Final = 1 << 15
"""Largest declared height or width in pixels."""


def _fits(_: object, attribute: Attribute[Any], size: tuple[int, int] | None) -> None:
    if size is None:
        return
    is_whole = isinstance(size, tuple) and all(type(side) is int for side in size)
    if not is_whole or len(size) != 2 or not all(1 <= side <= MAX_SIDE for side in size):  # noqa: PLR2004 - (H, W)
        raise StudyError(
            f"{attribute.name} is {size!r}; give height and width in pixels, such as (224, 224)."
        )


def _known(_: object, attribute: Attribute[str], value: object) -> None:
    known = get_args({"resize": Resize, "layout": Layout}[attribute.name])
    if value not in known:
        raise StudyError(f"{attribute.name} is {value!r}; let it be one of {', '.join(known)}.")


@frozen(kw_only=True)
class ImageFileOptions:
    """Declared ways to read image files, equal at all sites.

    Attributes:
        size: Height and width in pixels to which each image is resized. None keeps the files'
            own, which must be equal.
        resize: Method of resizing.
        pages: Whether the pages of a TIFF file are the slices of a volume. Without that, a file
            of several pages is refused.
        layout: Position of the channels in npy files, if their shape is ambiguous.
    """

    size: tuple[int, int] | None = field(default=None, validator=_fits)
    resize: Resize = field(default="bilinear", validator=_known)
    pages: bool = False
    layout: Layout = field(default="auto", validator=_known)


def read_image(path: Path, options: ImageFileOptions | None = None) -> NDArray[Any]:
    """Return the image of a file, shape (C, H, W), or (C, D, H, W) for a volume.

    See `picture.to_array` for the types of its values.

    Args:
        path: A file whose suffix is one of `IMAGE_SUFFIXES`.
        options: Declared ways to read it. None declares nothing.

    Raises:
        DataError: The file is missing, damaged or too large. Or it has several readings, or would
            lose something. The sentence names the path.
    """
    with warnings.catch_warnings(action="ignore"):
        return decode_image(path, options or ImageFileOptions())


def decode_image(path: Path, options: ImageFileOptions) -> NDArray[Any]:
    """Return the image of a file, like `read_image`, from any thread.

    The caller must ignore warnings. To do so changes the state of the whole process, so that no
    single thread may.

    Args:
        path: A file whose suffix is one of `IMAGE_SUFFIXES`.
        options: Declared ways to read it.

    Raises:
        DataError: As for `read_image`.
    """
    image = _from_npy(path, options) if _is_npy(path) else _from_picture(path, options)
    return resize_image(image, path, options)


def resize_image(image: NDArray[Any], path: Path, options: ImageFileOptions) -> NDArray[Any]:
    """Return an image, shape (C, H, W), in the declared size if there is one.

    Args:
        image: The image.
        path: Its file, for an error.
        options: The declared size and method.

    Raises:
        DataError: A size is declared, and the image is a volume.
    """
    if options.size is None:
        return image
    _require_flat(image[0], path, options)
    return resize(image, options.size, options.resize)


def decode_mask(path: Path, options: ImageFileOptions) -> NDArray[np.uint8]:
    """Return the mask of a file, shape (H, W) or (D, H, W): a label for each pixel.

    A declared size resizes it by copying the nearest label.

    Args:
        path: A picture file, or an npy file of such a shape.
        options: Declared ways to read it.

    Raises:
        DataError: The file is missing or damaged, or is no mask.
    """
    if _is_npy(path):
        mask = _load(path)
        if mask.dtype not in (np.uint8, np.bool_) or mask.ndim not in (FLAT, FLAT + 1):
            raise DataError(
                f"{path} is {mask.dtype} of shape {mask.shape}, which is no mask; save one uint8 "
                "label for each pixel, shape (H, W) or (D, H, W)."
            )
        mask = mask.astype(np.uint8)
    else:
        mask = _from_pages(path, options, to_mask)
    return resize_mask(mask, path, options)


def resize_mask(
    mask: NDArray[np.uint8], path: Path, options: ImageFileOptions
) -> NDArray[np.uint8]:
    """Return a mask, shape (H, W), in the declared size if there is one.

    Args:
        mask: The mask.
        path: Its file, for an error.
        options: The declared size. The nearest label is copied.

    Raises:
        DataError: A size is declared, and the mask is of a volume.
    """
    if options.size is None:
        return mask
    _require_flat(mask, path, options)
    resized: NDArray[np.uint8] = resize(mask[None], options.size, "nearest")[0]
    return resized


def _require_flat(channel: NDArray[Any], path: Path, options: ImageFileOptions) -> None:
    if channel.ndim != FLAT:
        raise DataError(
            f"{path} is a volume, and size = {list(options.size or ())} resizes only flat images; "
            "resample it beforehand."
        )


def _is_npy(path: Path) -> bool:
    return path.suffix.lower() == ".npy"


def _from_npy(path: Path, options: ImageFileOptions) -> NDArray[Any]:
    image: NDArray[Any] = to_channels_first(
        _load(path)[None], f"{path} (with N = 1)", layout=options.layout
    )[0]
    return image


def _load(path: Path) -> NDArray[Any]:
    if not path.is_file():
        raise DataError(f"there is no file {path}; correct its path.")
    try:
        return read_npy(path, MAX_PIXELS)
    except UNREADABLE as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".") or type(error).__name__
        raise DataError(
            f"{path} cannot be read as an npy file ({' '.join(reason.split())}); write it anew "
            "with numpy.save and without Python objects."
        ) from error


def _from_picture(path: Path, options: ImageFileOptions) -> NDArray[Any]:
    image = _from_pages(path, options, to_array)
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise DataError(f"{path} has values that are not finite numbers; replace them.")
    return image


def _from_pages(
    path: Path, options: ImageFileOptions, convert: Callable[[Image, Path], NDArray[Any]]
) -> NDArray[Any]:
    """Return the picture of a file, or its declared pages with their axis before the height."""
    with open_picture(path) as image:
        is_tiff = image.format == "TIFF"
        if options.pages and is_tiff:
            return np.stack([convert(page, path) for page in _pages(image, path)], axis=-3)
        require_one_page(image, path, _PAGES if is_tiff else "")
        return convert(image, path)


_PAGES: Final = ", or declare pages = true of the data set if they are slices of one volume"


def _pages(image: Image, path: Path) -> Iterator[Image]:
    """Yield an opened TIFF file at each of its pages, which are compared and counted."""
    form: tuple[Any, ...] = ()
    values = 0
    for page in itertools.count():
        if not seek(image, page):
            return
        values += image.width * image.height * len(image.getbands())
        form = form or (image.mode, image.size)
        if form != (image.mode, image.size):
            raise DataError(
                f"{path} has pages of different sizes or kinds; save the slices of one volume, or "
                "each page in a file of its own."
            )
        if values > MAX_PIXELS:
            raise DataError(
                f"{path} has pages of more than {MAX_PIXELS:,} values; cut the volume into "
                "smaller ones."
            )
        yield image
