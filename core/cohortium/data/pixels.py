"""Arrays of images as people save them, read unambiguously or refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from attrs import frozen

from cohortium.data.examples import to_c_order
from cohortium.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

Layout = Literal["auto", "channels-last", "channels-first"]
"""Order of the axes of an array of images.

"auto" reads arrays that can be read in only one way.
"""

MAX_CHANNELS: Final = 16

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
        shape: Shape of an image, (C, H, W).
    """

    layout: Layout
    shape: tuple[int, int, int]

    def __str__(self) -> str:
        """Return the text for a sentence."""
        channels, height, width = self.shape
        place = self.layout.replace("-", " ")
        many = "1 channel" if channels == 1 else f"{channels} channels"
        return f"images of {height} × {width} with {many} ({place})"


def to_channels_first(
    images: NDArray[Any],
    where: str,
    *,
    layout: Layout = "auto",
    shape: tuple[int, int, int] | None = None,
) -> NDArray[np.uint8]:
    """Return saved images as an array of shape (N, C, H, W).

    The saved shape is (N, H, W), (N, H, W, C) or (N, C, H, W).

    Args:
        images: Images as saved.
        where: Name of the images in an error.
        layout: Order of their axes, if it is declared.
        shape: The required shape of an image, if it is known: (C, H, W).

    Raises:
        DataError: The images are not `uint8`, or have a shape that can be read in several ways, or
            in none.
    """
    if images.dtype != np.uint8:
        raise DataError(f"{where} is {images.dtype}; {_uint8_advice(images)}.")
    if images.ndim == 3 and 0 not in images.shape[1:]:  # noqa: PLR2004 - (N, H, W)
        return to_c_order(images[:, None])
    if images.ndim != 4 or 0 in images.shape[1:]:  # noqa: PLR2004 - with channels
        flat = "; volumes are not read" if images.ndim > 4 else ""  # noqa: PLR2004
        raise DataError(
            f"{where} has shape {images.shape}; save it as (N, H, W) for grey, or (N, H, W, C) "
            f"with at most {MAX_CHANNELS} channels last{flat}."
        )
    chosen = _choose_layout(images.shape, where, layout, shape)
    return to_c_order(images if chosen == "channels-first" else images.transpose(0, 3, 1, 2))


def _choose_layout(
    shape: tuple[int, ...], where: str, layout: Layout, wanted: tuple[int, int, int] | None
) -> Layout:
    """Return the layout of an array of four axes."""
    _, first, _, last = shape
    known = list(_possible_layouts(shape))
    if layout != "auto":
        if layout not in {reading.layout for reading in known}:
            channels = last if layout == "channels-last" else first
            raise DataError(
                f'{where} has shape {shape}, which layout = "{layout}" reads as {channels} '
                f"channels, and at most {MAX_CHANNELS} are read; declare the other layout."
            )
        return layout
    fitting = [reading for reading in known if reading.shape == wanted]
    if len({reading.layout for reading in fitting}) == 1:
        return fitting[0].layout
    is_plain = last in _PLAIN and first not in _PLAIN
    if is_plain or shape[1:] == (1, 1, 1):
        return "channels-last"
    raise DataError(f"{where} has shape {shape}, {_describe_ambiguity(shape, known, wanted)}.")


def _possible_layouts(shape: tuple[int, ...]) -> Iterator[ArrayLayout]:
    _, first, second, last = shape
    if last <= MAX_CHANNELS:
        yield ArrayLayout("channels-last", (last, first, second))
    if first <= MAX_CHANNELS:
        yield ArrayLayout("channels-first", (first, second, last))


def _describe_ambiguity(
    shape: tuple[int, ...], known: list[ArrayLayout], wanted: tuple[int, int, int] | None
) -> str:
    """Return the ways in which `shape` can be read, and advice."""
    volumes = f"grey volumes of {' × '.join(map(str, shape[1:]))}"
    if not known:
        return f"which reads as {volumes}, and only flat images are read; save slices of them"
    ways = [*map(str, known), volumes]
    alpha = _WITH_ALPHA.get(shape[-1])
    if alpha is not None:
        ways.append(f"{alpha} with transparency")
    listed = f"{', '.join(ways[:-1])} or {ways[-1]}"
    if wanted is not None:
        channels, height, width = wanted
        remedy = (
            f"the model takes {channels} channels of {height} × {width}, so save it so, with the "
            "channels last"
        )
    else:
        declared = " or ".join(f'layout = "{reading.layout}"' for reading in known)
        cut = f", or leave the transparency out (images[..., :{shape[-1] - 1}])" if alpha else ""
        remedy = (
            f"say which with {declared} of the data set, or save plain images with 1 or 3 channels "
            f"last{cut}; volumes are not read"
        )
    return f"which can be read as {listed}: {remedy}"


def _uint8_advice(images: NDArray[Any]) -> str:
    """Return advice for making `uint8` of other values."""
    advice = "save brightness from 0 to 255 as uint8"
    if images.dtype == np.bool_:
        return f"{advice}: multiply by 255"
    if images.dtype.kind not in "iuf" or not images.size:
        return advice
    low, high = images.min(), images.max()
    if images.dtype.kind == "f" and low >= 0 and high <= 1:
        return f"{advice}: multiply by 255 and round"
    return (
        f"{advice}: scale or window its values, which run from {low:g} to {high:g}; a cast alone "
        "would wrap them"
    )
