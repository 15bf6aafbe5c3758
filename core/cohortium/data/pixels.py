"""Arrays of images as people save them, read unambiguously or refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
from attrs import frozen

from cohortium.data.examples import PixelType, to_c_order
from cohortium.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

Layout = Literal["auto", "channels-last", "channels-first", "volumes"]
"""Order of the axes of an array of images.

"channels-last" and "channels-first" declare the place of the channels of flat images or volumes,
and "volumes" grey volumes without an axis for channels. "auto" reads arrays that can be read in
only one way.
"""

MAX_CHANNELS: Final = 16

FLAT: Final = 2
"""Number of axes of a flat image, without channels."""

_PLAIN: Final = (1, 3)
"""Numbers of channels that need no declaration: grey and colour."""

_WITH_ALPHA: Final = {2: "grey", 4: "colour"}
"""Numbers of channels of which the last may be transparency.

The values name the kind of the other channels.
"""


@frozen
class ArrayLayout:
    """One way to read an array of images.

    Attributes:
        layout: The layout that declares it.
        shape: Shape of an image, (C, H, W) or (C, D, H, W).
    """

    layout: Layout
    shape: tuple[int, ...]

    def __str__(self) -> str:
        """Return the text for a sentence."""
        channels, *size = self.shape
        axes = " × ".join(map(str, size))
        if self.layout == "volumes":
            return f"grey volumes of {axes}"
        place = self.layout.replace("-", " ")
        many = "1 channel" if channels == 1 else f"{channels} channels"
        kind = "images" if len(size) == FLAT else "volumes"
        return f"{kind} of {axes} with {many} ({place})"


def to_channels_first(
    images: NDArray[Any],
    where: str,
    *,
    layout: Layout = "auto",
    shape: tuple[int, ...] | None = None,
) -> NDArray[Any]:
    """Return saved images as an array of shape (N, C, H, W) or (N, C, D, H, W).

    The saved shape is (N, H, W), or has the channels first or last, or is that of volumes.

    Args:
        images: Images as saved.
        where: Name of the images in an error.
        layout: Order of their axes, if it is declared.
        shape: The required shape of an image, if it is known: (C, …).

    Raises:
        DataError: The images are of no `PixelType`, are not finite, or have a shape that can be
            read in several ways, or in none.
    """
    if images.dtype.name not in get_args(PixelType):
        raise DataError(f"{where} is {images.dtype}; {_pixel_type_advice(images)}.")
    if images.dtype.kind == "f" and not all(np.isfinite(image).all() for image in images):
        raise DataError(
            f"{where} has NaN or infinite values; replace them, or leave those images out."
        )
    readings = tuple(_possible_readings(images.shape))
    if not readings:
        raise DataError(
            f"{where} has shape {images.shape}; save it as (N, H, W) for grey, as (N, H, W, C) "
            f"with at most {MAX_CHANNELS} channels last, or as (N, D, H, W) or (N, D, H, W, C) for "
            "volumes."
        )
    chosen = _choose_reading(images.shape, readings, where, layout, shape)
    if len(chosen.shape) == images.ndim:
        return to_c_order(images[:, None])
    first = chosen.layout == "channels-first"
    return to_c_order(images if first else np.moveaxis(images, -1, 1))


def _possible_readings(shape: tuple[int, ...]) -> Iterator[ArrayLayout]:
    """Yield every way to read an array of this shape."""
    if 0 in shape[1:] or len(shape) - 1 not in (2, 3, 4):
        return
    _, first, *_, last = shape
    if len(shape) - 1 == FLAT:
        yield ArrayLayout("auto", (1, *shape[1:]))
        return
    if last <= MAX_CHANNELS:
        yield ArrayLayout("channels-last", (last, *shape[1:-1]))
    if first <= MAX_CHANNELS:
        yield ArrayLayout("channels-first", shape[1:])
    if len(shape) - 1 == FLAT + 1:
        yield ArrayLayout("volumes", (1, *shape[1:]))


def _choose_reading(
    shape: tuple[int, ...],
    readings: tuple[ArrayLayout, ...],
    where: str,
    layout: Layout,
    wanted: tuple[int, ...] | None,
) -> ArrayLayout:
    """Return the one way to read an array of this shape.

    Raises:
        DataError: There are several, or the declared one is not possible.
    """
    if len(shape) - 1 == FLAT:
        if layout == "volumes":
            raise DataError(
                f'{where} has shape {shape}, which layout = "volumes" cannot read: a volume has '
                "three axes; save them as (N, D, H, W)."
            )
        return readings[0]
    if layout != "auto":
        declared = [reading for reading in readings if reading.layout == layout]
        if declared:
            return declared[0]
        if layout == "volumes":
            raise DataError(
                f'{where} has shape {shape}, which layout = "volumes" cannot read: it has an axis '
                "for channels; declare channels-last or channels-first."
            )
        channels = shape[-1] if layout == "channels-last" else shape[1]
        raise DataError(
            f'{where} has shape {shape}, which layout = "{layout}" reads as {channels} '
            f"channels, and at most {MAX_CHANNELS} are read; declare the other layout."
        )
    fitting = [reading for reading in readings if reading.shape == wanted]
    if len(fitting) == 1 or (fitting and {r.layout for r in fitting} == {"channels-last"}):
        return fitting[0]
    plain = [
        reading
        for reading in readings
        if reading.layout == "channels-last" and shape[-1] in _PLAIN and shape[1] not in _PLAIN
    ]
    if plain or shape[1:] == (1, 1, 1):
        return (plain or readings)[0]
    raise DataError(f"{where} has shape {shape}, {_describe_ambiguity(shape, readings, wanted)}.")


def _describe_ambiguity(
    shape: tuple[int, ...], readings: tuple[ArrayLayout, ...], wanted: tuple[int, ...] | None
) -> str:
    """Return the ways in which `shape` can be read, and advice."""
    ways = [*map(str, readings)]
    alpha = _WITH_ALPHA.get(shape[-1])
    if alpha is not None:
        ways.append(f"{alpha} with transparency")
    listed = f"{', '.join(ways[:-1])} or {ways[-1]}" if len(ways) > 1 else ways[0]
    if wanted is not None:
        channels, *size = wanted
        remedy = (
            f"the model takes {channels} channels of {' × '.join(map(str, size))}, so save it so, "
            "with the channels last"
        )
    else:
        declared = " or ".join(f'layout = "{reading.layout}"' for reading in readings)
        cut = f", or leave the transparency out (images[..., :{shape[-1] - 1}])" if alpha else ""
        remedy = (
            f"say which with {declared} of the data set, or save plain images with 1 or 3 channels "
            f"last{cut}"
        )
    return f"which can be read as {listed}: {remedy}"


def _pixel_type_advice(images: NDArray[Any]) -> str:
    """Return advice for saving values of another type."""
    advice = "save brightness from 0 to 255 as uint8"
    if images.dtype == np.bool_:
        return f"{advice}: multiply by 255"
    if images.dtype.kind not in "iuf" or not images.size:
        return advice
    low, high = images.min(), images.max()
    if images.dtype.kind == "f":
        return "save it as float32: astype('float32')"
    kept = next((n for n in ("uint8", "uint16", "int16") if _holds(n, low, high)), "")
    if kept:
        return f"save it as {kept}, which holds its values, from {low:g} to {high:g}"
    return (
        f"save its values, which run from {low:g} to {high:g}, as float32; a cast to fewer bits "
        "would wrap them"
    )


def _holds(pixel_type: str, low: float, high: float) -> bool:
    limits = np.iinfo(pixel_type)
    return bool(limits.min <= low and high <= limits.max)
