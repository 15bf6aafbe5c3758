"""Small pictures of examples for a page, in the page itself."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from attrs import field, frozen

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cohortium.data.examples import Examples
    from cohortium.data.task import Task

COUNT: Final = 16
"""Number of thumbnails of a page."""

SIDE: Final = 192
"""Longest side of a thumbnail in pixels."""

FEW_PIXELS: Final = 96
"""Longest side of an image that is shown with its pixels as squares."""

COLOURS: Final = (
    (64, 160, 255),
    (255, 140, 40),
    (40, 205, 150),
    (205, 110, 225),
    (235, 205, 60),
    (60, 205, 220),
    (255, 95, 150),
    (190, 200, 210),
)
"""Red, green and blue of the classes of masks after the background, in turn."""

_OPACITY: Final = 0.5
_MAX_NAMES: Final = 4
_RGB: Final = 3


@frozen(kw_only=True)
class Thumbnail:
    """One example as a small picture.

    Attributes:
        source: The picture as a `data:` URI of a PNG file.
        caption: Names of its label.
        has_few_pixels: Whether each pixel of it is shown as a square.
    """

    source: str = field(repr=False)
    caption: str
    has_few_pixels: bool


def thumbnails(
    examples: Examples, task: Task, intensity_range: tuple[float, float]
) -> tuple[Thumbnail, ...]:
    """Return pictures of at most `COUNT` examples, whose labels differ where they can.

    Args:
        examples: The examples.
        task: Meaning of a label.
        intensity_range: The stored values that become black and white.
    """
    return tuple(
        _thumbnail(examples, index, task, intensity_range)
        for index in chosen(task.strata(examples.labels), COUNT)
    )


def chosen(strata: NDArray[np.int64], count: int) -> tuple[int, ...]:
    """Return at most `count` positions that cover all groups, evenly within each.

    Args:
        strata: Group of each example, shape (N,).
        count: Largest number of positions.

    Returns:
        Positions, ordered by group.
    """
    groups = [np.flatnonzero(strata == group) for group in np.unique(strata)]
    if len(groups) > count:
        groups = [groups[i] for i in np.linspace(0, len(groups) - 1, count).round().astype(int)]
    shares, left = [0] * len(groups), min(count, sum(map(len, groups)))
    while left:
        for place, group in enumerate(groups):
            if left and shares[place] < len(group):
                shares[place] += 1
                left -= 1
    return tuple(
        int(group[position])
        for group, share in zip(groups, shares, strict=True)
        for position in np.linspace(0, len(group) - 1, share).round().astype(int)
    )


def _thumbnail(
    examples: Examples, index: int, task: Task, intensity_range: tuple[float, float]
) -> Thumbnail:
    from PIL import Image

    image, label = examples.images[index], examples.labels[index]
    is_mask = label.shape == image.shape[1:]
    pixels = to_pixels(image, intensity_range)
    if is_mask:
        if image.ndim > _RGB:
            label = label[image.shape[1] // 2]
        size = pixels.shape[1], pixels.shape[0]
        mask = Image.fromarray(np.ascontiguousarray(label)).resize(size, Image.Resampling.NEAREST)
        pixels = overlaid(pixels, np.asarray(mask))
    return Thumbnail(
        source=picture_uri(pixels),
        caption=_caption(examples.labels[index : index + 1], task, is_mask=is_mask),
        has_few_pixels=max(image.shape[-2:]) <= FEW_PIXELS,
    )


def to_pixels(image: NDArray[Any], intensity_range: tuple[float, float]) -> NDArray[np.uint8]:
    """Return an image as a picture of colours, shape (H, W, 3), with sides up to `SIDE`.

    Args:
        image: Shape (C, H, W), or (C, D, H, W) for a volume, of which the middle slice is shown.
        intensity_range: The values that become black and white.
    """
    from PIL import Image

    if image.ndim > _RGB:
        image = image[:, image.shape[1] // 2]
    low, high = intensity_range
    grey = ((image.astype(np.float32) - low) / max(high - low, 1e-9)).clip(0, 1) * 255
    channels = grey if len(grey) == _RGB else np.repeat(grey[:1], _RGB, axis=0)
    pixels = np.ascontiguousarray(channels.round().astype(np.uint8).transpose(1, 2, 0))
    height, width = pixels.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    if scale == 1:
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))


def picture_uri(pixels: NDArray[np.uint8]) -> str:
    """Return a picture of colours, shape (H, W, 3), as the `data:` URI of a PNG file."""
    return f"data:image/png;base64,{base64.b64encode(picture_bytes(pixels)).decode()}"


def picture_bytes(pixels: NDArray[np.uint8]) -> bytes:
    """Return a picture of colours, shape (H, W, 3), as a PNG file."""
    from PIL import Image

    file = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", optimize=True)
    return file.getvalue()


def overlaid(pixels: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a picture with each class of its mask, but the background, in a colour."""
    colours = np.array(COLOURS, dtype=np.float32)[(mask.astype(int) - 1) % len(COLOURS)]
    mixed = pixels * (1 - _OPACITY) + colours * _OPACITY
    return np.where(mask[..., None] > 0, mixed, pixels).round().astype(np.uint8)


def _caption(label: NDArray[Any], task: Task, *, is_mask: bool) -> str:
    held = np.flatnonzero(task.counts(label) > 0)
    names = [task.names[k] for k in held if not (is_mask and k == 0)]
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return (", ".join(names[:_MAX_NAMES]) or "none") + more
