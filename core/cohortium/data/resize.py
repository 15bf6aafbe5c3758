"""Resizing of images by a declared method, with one code for all sites."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Resize = Literal["bilinear", "bicubic", "nearest"]
"""Method of resizing.

The first two average over all source pixels of a target pixel (antialiasing). "nearest" copies one.
"""


def resize(image: NDArray[Any], size: tuple[int, int], method: Resize) -> NDArray[Any]:
    """Return an image of another height and width, and of the same type.

    Pillow resizes each channel on its own. It computes 8 bits in integers, and other types in
    `float32`. Results are rounded to the nearest value of the type. The ratio of height to width
    becomes the declared one.

    Args:
        image: The image, shape (C, H, W).
        size: The new height and width in pixels.
        method: How to compute a pixel from those near it.
    """
    if image.shape[1:] == size:
        return image
    resized = np.empty((len(image), *size), image.dtype)
    for source, target in zip(image, resized, strict=True):
        target[:] = _resize_channel(source, size, method)
    return resized


def _resize_channel(channel: NDArray[Any], size: tuple[int, int], method: Resize) -> NDArray[Any]:
    from PIL import Image

    height, width = size
    resample = Image.Resampling[method.upper()]
    is_byte = channel.dtype == np.uint8
    picture = Image.fromarray(channel if is_byte else channel.astype(np.float32))
    values: NDArray[Any] = np.asarray(picture.resize((width, height), resample))
    if channel.dtype.kind == "f" or is_byte:
        return values
    limits = np.iinfo(channel.dtype)
    rounded: NDArray[Any] = np.rint(values).clip(limits.min, limits.max).astype(channel.dtype)
    return rounded
