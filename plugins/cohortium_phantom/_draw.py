"""Procedural blood-smear cells of eight types, drawn with numpy alone.

A cell is an outline filled with cytoplasm, a nucleus of overlapping round lobes along an arc, and
granules, on a smear with red cells.  Types share most of their colours.  They differ in morphology:
size, number and arrangement of the lobes, the nucleus' share of the cell, granules.
Lengths are in pixels of a 28x28 image.

The pictures are made up.  A model trained on them says nothing about real blood.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cohortium_phantom._atlas import ATLAS, CELL_TYPES, Colour, Range

__all__ = ["CELL_TYPES", "SIDE", "draw", "draw_masks"]

SIDE: Final = 28
CHUNK: Final = 256
MAX_LOBES: Final = 5
RED_CELLS: Final = 6
EDGE: Final = 0.5
"""Opacity at the edge of a part, for masks."""

Array: TypeAlias = NDArray[np.floating[Any]]
"""Array of single precision throughout.  NumPy's stubs lose track of the width."""

_NUCLEUS: Final[Colour] = (0.34, 0.19, 0.52)
_SMEARS: Final[tuple[Colour, ...]] = ((0.98, 0.89, 0.79), (0.96, 0.90, 0.84), (0.86, 0.86, 0.94))
_RED_CELL: Final[Colour] = (0.84, 0.70, 0.66)


def draw(labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw one cell for each label.

    Args:
        labels: Types of the cells, shape (N,), indices into `CELL_TYPES`.
        rng: The only source of randomness: one state of it gives one set of pictures.

    Returns:
        Images, shape (N, 3, 28, 28), red, green and blue from 0 to 255.

    Raises:
        ValueError: A label is not an index into `CELL_TYPES`.
    """
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < len(CELL_TYPES):
        raise ValueError(f"labels must lie in [0, {len(CELL_TYPES) - 1}]")
    images = np.empty((len(labels), 3, SIDE, SIDE), dtype=np.uint8)
    for start in range(0, len(labels), CHUNK):
        part = slice(start, start + CHUNK)
        images[part] = _expose(_picture(labels[part], rng), rng)
    return images


def draw_masks(
    labels: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw one cell for each label, with the mask of its parts.

    Args:
        labels: Types of the cells, shape (N,), indices into `CELL_TYPES`.
        rng: The only source of randomness.

    Returns:
        Images as `draw` gives them, and masks of shape (N, 28, 28): 0 for the smear, 1 for
        cytoplasm, 2 for the nucleus.
    """
    images = np.empty((len(labels), 3, SIDE, SIDE), dtype=np.uint8)
    masks = np.zeros((len(labels), SIDE, SIDE), dtype=np.uint8)
    for start in range(0, len(labels), CHUNK):
        part = slice(start, start + CHUNK)
        picture, body, nucleus = _layers(labels[part], rng)
        images[part] = _expose(picture, rng)
        masks[part][body[:, 0] > EDGE] = 1
        masks[part][nucleus[:, 0] > EDGE] = 2
    return images, masks


def _picture(labels: NDArray[np.int64], rng: np.random.Generator) -> Array:
    """Draw clean pictures, shape (n, 3, 28, 28), of cells on a smear."""
    return _layers(labels, rng)[0]


def _layers(labels: NDArray[np.int64], rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Return clean pictures, and the opacity of each cell's body and nucleus."""
    n = len(labels)
    radius = _draw_each([kind.radius for kind in ATLAS], labels, rng)
    x, y = _grid(_uniform(rng, (-3.0, 3.0), n), _uniform(rng, (-3.0, 3.0), n))
    blur = _uniform(rng, (0.35, 0.9), n)

    body = _disc(x, y, _outline(x, y, radius, rng), blur)
    nucleus = _nucleus(x, y, radius, labels, blur=blur, rng=rng)
    coverage = _draw_each([kind.granules for kind in ATLAS], labels, rng)
    granules = body * _speckle(n, coverage, rng)
    dark = _draw_each([kind.chromatin for kind in ATLAS], labels, rng)
    chromatin = _tint([_NUCLEUS] * len(ATLAS), labels, rng) ** dark

    picture = _smear(x, y, radius, blur, rng)
    picture = _over(picture, body, _tint([kind.cytoplasm for kind in ATLAS], labels, rng))
    picture = _over(picture, 0.95 * nucleus, chromatin * (1 + 0.25 * _clumps(n, rng)))
    # Granules lie above and below the nucleus, so that those over it show only in part.
    seen = granules * (1 - 0.6 * nucleus)
    whole = _over(picture, 0.8 * seen, _tint([kind.granule for kind in ATLAS], labels, rng))
    return whole, body, nucleus


def _nucleus(
    x: Array,
    y: Array,
    radius: Array,
    labels: NDArray[np.int64],
    *,
    blur: Array,
    rng: np.random.Generator,
) -> Array:
    """Return the opacity of the nucleus, shape (n, 1, 28, 28).

    The nucleus is the union of lobes along an arc.
    """
    n = len(labels)
    fewest = np.array([kind.lobes[0] for kind in ATLAS])[labels]
    most = np.array([kind.lobes[1] for kind in ATLAS])[labels]
    count = rng.integers(fewest, most, endpoint=True).astype(np.float32).reshape(n, 1, 1, 1)
    arc = radius * _draw_each([kind.arc for kind in ATLAS], labels, rng)
    span = _draw_each([kind.span for kind in ATLAS], labels, rng)
    size = radius * _draw_each([kind.lobe for kind in ATLAS], labels, rng)
    shift = radius * _draw_each([kind.eccentric for kind in ATLAS], labels, rng)
    turn, aside = _uniform(rng, (0.0, 2 * np.pi), n), _uniform(rng, (0.0, 2 * np.pi), n)
    x, y = x - shift * np.cos(aside), y - shift * np.sin(aside)

    union: Array = np.zeros((n, 1, SIDE, SIDE), dtype=np.float32)
    for lobe in range(MAX_LOBES):
        place = lobe / np.maximum(count - 1, 1) - 0.5
        angle = turn + span * place + _normal(rng, 0.08, n)
        out = arc * np.exp(_normal(rng, 0.08, n))
        far = np.hypot(x - out * np.cos(angle), y - out * np.sin(angle))
        opacity = _sigmoid((size * np.exp(_normal(rng, 0.08, n)) - far) / blur)
        union = np.maximum(union, np.where(lobe < count, opacity, 0))
    return union


def _smear(x: Array, y: Array, radius: Array, blur: Array, rng: np.random.Generator) -> Array:
    """Draw the background, shape (n, 3, 28, 28).

    Its red cells keep clear of the cell's middle.
    """
    n = len(x)
    stain = rng.choice(len(_SMEARS), size=n, p=(0.55, 0.3, 0.15))
    picture: Array = _tint(_SMEARS, stain, rng) + np.zeros_like(x)
    red = _tint([_RED_CELL] * len(_SMEARS), stain, rng)
    for _ in range(RED_CELLS):
        size = _uniform(rng, (3.5, 5.5), n)
        angle = _uniform(rng, (0.0, 2 * np.pi), n)
        far = radius + size * _uniform(rng, (0.7, 3.5), n)
        u, v = x - far * np.cos(angle), y - far * np.sin(angle)
        away = np.hypot(u, v)
        pallor = 1 - _uniform(rng, (0.0, 0.8), n) * np.exp(-((away / (0.5 * size)) ** 2))
        picture = _over(picture, 0.8 * pallor * _sigmoid((size - away) / blur), red)
    return picture


def _expose(picture: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Add the variation of preparation and camera.

    It is the strength of the stain, light, focus and sensor noise.
    """
    n = len(picture)
    shape = (n, 3, 1, 1)
    # A stronger stain multiplies the optical density (Beer-Lambert): a power of the light.
    density = np.exp(_normal(rng, 0.22, n) + rng.normal(0, 0.05, shape).astype(np.float32))
    light = np.exp(_normal(rng, 0.08, n) + rng.normal(0, 0.02, shape).astype(np.float32))
    x, y = _grid(np.float32(0), np.float32(0))
    slope = 1 + (_normal(rng, 0.05, n) * x + _normal(rng, 0.05, n) * y) / SIDE
    image: Array = np.clip(picture, 0.02, 1) ** density * light * slope
    image = _defocus(image, _uniform(rng, (0.0, 0.7), n))
    noise = rng.standard_normal(image.shape, dtype=np.float32) * _uniform(rng, (0.01, 0.045), n)
    exposed: NDArray[np.uint8] = np.rint(np.clip(image + noise, 0, 1) * 255).astype(np.uint8)
    return exposed


def _outline(x: Array, y: Array, radius: Array, rng: np.random.Generator) -> Array:
    """Return the cell's radius in each pixel's direction, (n, 1, 28, 28).

    The outline is not quite a circle.
    """
    angle = np.arctan2(y, x)
    wobble = np.zeros_like(angle)
    for waves, spread in ((2, 0.07), (3, 0.035), (5, 0.02)):
        phase = _uniform(rng, (0.0, 2 * np.pi), len(x))
        wobble += _normal(rng, spread, len(x)) * np.cos(waves * angle + phase)
    outline: Array = radius * (1 + wobble)
    return outline


def _disc(x: Array, y: Array, radius: Array, blur: Array) -> Array:
    return _sigmoid((radius - np.hypot(x, y)) / blur)


def _speckle(n: int, coverage: Array, rng: np.random.Generator) -> Array:
    """Return the opacity of granules, (n, 1, 28, 28).

    They cover about a share `coverage` of the pixels.
    """
    field = rng.random((n, 1, SIDE, SIDE), dtype=np.float32)
    opacity: Array = _sigmoid((coverage - field) / np.float32(0.06)) * (coverage > 0)
    return opacity


def _clumps(n: int, rng: np.random.Generator) -> Array:
    """Draw a chromatin texture, shape (n, 1, 28, 28), of mean zero."""
    return _defocus(rng.standard_normal((n, 1, SIDE, SIDE), dtype=np.float32), np.float32(1))


def _defocus(image: Array, amount: Array | np.float32) -> Array:
    """Blend the images with their 3x3 binomial blur."""
    blurred: Array = image
    for axis in (2, 3):
        width = [(0, 0)] * 4
        width[axis] = (1, 1)
        padded = np.moveaxis(np.pad(blurred, width, mode="edge"), axis, 0)
        left, right = padded[:-2], padded[2:]
        blurred = (left + 2 * np.moveaxis(blurred, axis, 0) + right) / 4
        blurred = np.moveaxis(blurred, 0, axis)
    mixed: Array = image + amount * (blurred - image)
    return mixed


def _over(picture: Array, opacity: Array, colour: Array) -> Array:
    covered: Array = picture + opacity * (colour - picture)
    return covered


def _tint(colours: object, labels: NDArray[np.int64], rng: np.random.Generator) -> Array:
    """Draw each image's own shade of its type's colour, (n, 3, 1, 1)."""
    base = np.array(colours, dtype=np.float32)[labels]
    shade = base + rng.normal(0, 0.02, (len(labels), 3)).astype(np.float32)
    tint: Array = np.clip(shade, 0.05, 1).reshape(-1, 3, 1, 1)
    return tint


def _draw_each(ranges: list[Range], labels: NDArray[np.int64], rng: np.random.Generator) -> Array:
    """Draw a value for each image, shape (n, 1, 1, 1).

    It is uniform over its type's range.
    """
    low, high = np.array(ranges, dtype=np.float32)[labels].T
    values: Array = rng.uniform(low, high).astype(np.float32).reshape(-1, 1, 1, 1)
    return values


def _uniform(rng: np.random.Generator, bounds: Range, n: int) -> Array:
    return rng.uniform(*bounds, (n, 1, 1, 1)).astype(np.float32)


def _normal(rng: np.random.Generator, spread: float, n: int) -> Array:
    return rng.normal(0, spread, (n, 1, 1, 1)).astype(np.float32)


def _grid(x: Array | np.float32, y: Array | np.float32) -> tuple[Array, Array]:
    """Return coordinates of the pixels relative to the points (x, y).

    They are in pixels from the middle.
    """
    line = np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2
    across, down = np.broadcast_arrays(line[None, :], line[:, None])
    return across.astype(np.float32) - x, down.astype(np.float32) - y


def _sigmoid(z: Array) -> Array:
    shares: Array = 1 / (1 + np.exp(-np.clip(3 * z, -30, 30)))
    return shares
