"""Procedural blood-smear cells of eight types, drawn with numpy alone.

A cell is an outline filled with cytoplasm, a nucleus of overlapping round lobes along an arc, and
granules, on a smear with red cells. Types share most of their colours; what tells them apart is
morphology: size, number and arrangement of the lobes, the nucleus' share of the cell, granules.
Lengths are in pixels of a 28x28 image.

The pictures are made up. A model trained on them says nothing about real blood.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

__all__ = ["CELL_TYPES", "draw"]

SIDE: Final = 28
CHUNK: Final = 256
MOST_LOBES: Final = 5
RED_CELLS: Final = 6

Array: TypeAlias = NDArray[np.floating[Any]]
"""Single precision throughout; NumPy's stubs lose track of the width."""
Range: TypeAlias = tuple[float, float]
Colour: TypeAlias = tuple[float, float, float]


@frozen(kw_only=True)
class Morphology:
    """What makes a cell type: ranges to draw each cell's own values from.

    Attributes:
        name: The type's name.
        radius: Radius of the cell, in pixels.
        lobes: Fewest and most lobes of the nucleus; no lobes, no nucleus.
        lobe: Radius of a lobe, as a share of the cell's radius.
        arc: Distance of the lobes from the nucleus' middle, likewise.
        span: Angle over which the lobes spread, in radians.
        eccentric: Distance between the middles of nucleus and cell, likewise.
        cytoplasm: Colour of the cytoplasm, red, green and blue in [0, 1].
        granules: Share of the cell that granules cover.
        granule: Colour of the granules.
        chromatin: Darkness of the nucleus, 1 for the usual stain.
    """

    name: str
    radius: Range
    cytoplasm: Colour
    lobes: tuple[int, int] = (0, 0)
    lobe: Range = (0.0, 0.0)
    arc: Range = (0.0, 0.0)
    span: Range = (0.0, 0.0)
    eccentric: Range = (0.0, 0.15)
    granules: Range = (0.0, 0.03)
    granule: Colour = (0.45, 0.35, 0.60)
    chromatin: Range = (0.90, 1.2)


_ATLAS: Final = (
    Morphology(
        name="basophil",
        radius=(7.0, 9.2),
        lobes=(2, 3),
        lobe=(0.42, 0.58),
        arc=(0.25, 0.40),
        span=(1.8, 3.0),
        cytoplasm=(0.60, 0.45, 0.68),
        granules=(0.40, 0.60),
        granule=(0.24, 0.13, 0.42),
        chromatin=(0.75, 1.0),
    ),
    Morphology(
        name="eosinophil",
        radius=(7.6, 10.0),
        lobes=(2, 2),
        lobe=(0.33, 0.45),
        arc=(0.38, 0.52),
        span=(2.0, 3.1),
        eccentric=(0.05, 0.25),
        cytoplasm=(0.80, 0.58, 0.64),
        granules=(0.30, 0.50),
        granule=(0.78, 0.42, 0.45),
        chromatin=(0.85, 1.1),
    ),
    Morphology(
        name="erythroblast",
        radius=(5.6, 7.8),
        lobes=(1, 1),
        lobe=(0.44, 0.64),
        eccentric=(0.08, 0.32),
        cytoplasm=(0.66, 0.60, 0.74),
        chromatin=(1.05, 1.4),
    ),
    Morphology(
        name="immature granulocyte",
        radius=(9.0, 12.2),
        lobes=(2, 3),
        lobe=(0.55, 0.68),
        arc=(0.12, 0.24),
        span=(1.2, 2.4),
        eccentric=(0.05, 0.22),
        cytoplasm=(0.68, 0.56, 0.74),
        granules=(0.10, 0.28),
        granule=(0.52, 0.30, 0.56),
        chromatin=(0.70, 0.95),
    ),
    Morphology(
        name="lymphocyte",
        radius=(5.8, 8.2),
        lobes=(1, 2),
        lobe=(0.74, 0.88),
        arc=(0.0, 0.08),
        span=(0.0, 3.0),
        cytoplasm=(0.64, 0.60, 0.78),
    ),
    Morphology(
        name="monocyte",
        radius=(9.2, 12.4),
        lobes=(5, 5),
        lobe=(0.28, 0.38),
        arc=(0.34, 0.46),
        span=(2.2, 3.4),
        cytoplasm=(0.68, 0.61, 0.75),
        granules=(0.02, 0.12),
        granule=(0.84, 0.78, 0.86),
        chromatin=(0.75, 1.0),
    ),
    Morphology(
        name="neutrophil",
        radius=(7.6, 10.0),
        lobes=(3, 5),
        lobe=(0.22, 0.32),
        arc=(0.36, 0.50),
        span=(2.6, 4.6),
        cytoplasm=(0.80, 0.67, 0.75),
        granules=(0.04, 0.16),
        granule=(0.68, 0.46, 0.62),
    ),
    Morphology(
        name="platelet",
        radius=(2.4, 4.4),
        cytoplasm=(0.62, 0.52, 0.74),
        granules=(0.20, 0.50),
        granule=(0.40, 0.26, 0.56),
    ),
)

CELL_TYPES: tuple[str, ...] = tuple(kind.name for kind in _ATLAS)
"""The eight types, in the order of the labels: those of BloodMNIST."""

_NUCLEUS: Final[Colour] = (0.34, 0.19, 0.52)
_SMEARS: Final[tuple[Colour, ...]] = ((0.98, 0.89, 0.79), (0.96, 0.90, 0.84), (0.86, 0.86, 0.94))
_RED_CELL: Final[Colour] = (0.84, 0.70, 0.66)


def draw(labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draws one cell for each label.

    Args:
        labels: Types of the cells, shape (N,), indices into `CELL_TYPES`.
        rng: The only source of randomness: one state of it, one set of pictures.

    Returns:
        Images, shape (N, 3, 28, 28), red, green and blue from 0 to 255.

    Raises:
        ValueError: If a label is no index into `CELL_TYPES`.
    """
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < len(CELL_TYPES):
        raise ValueError(f"labels must lie in [0, {len(CELL_TYPES) - 1}]")
    images = np.empty((len(labels), 3, SIDE, SIDE), dtype=np.uint8)
    for start in range(0, len(labels), CHUNK):
        part = slice(start, start + CHUNK)
        images[part] = _expose(_picture(labels[part], rng), rng)
    return images


def _picture(labels: NDArray[np.int64], rng: np.random.Generator) -> Array:
    """Clean pictures, shape (n, 3, 28, 28), of cells on a smear."""
    n = len(labels)
    radius = _draw_each([kind.radius for kind in _ATLAS], labels, rng)
    x, y = _grid(_uniform(rng, (-3.0, 3.0), n), _uniform(rng, (-3.0, 3.0), n))
    blur = _uniform(rng, (0.35, 0.9), n)

    body = _disc(x, y, _outline(x, y, radius, rng), blur)
    nucleus = _nucleus(x, y, radius, blur, labels, rng)
    coverage = _draw_each([kind.granules for kind in _ATLAS], labels, rng)
    granules = body * _speckle(n, coverage, rng)
    dark = _draw_each([kind.chromatin for kind in _ATLAS], labels, rng)
    chromatin = _tint([_NUCLEUS] * len(_ATLAS), labels, rng) ** dark

    picture = _smear(x, y, radius, blur, rng)
    picture = _over(picture, body, _tint([kind.cytoplasm for kind in _ATLAS], labels, rng))
    picture = _over(picture, 0.95 * nucleus, chromatin * (1 + 0.25 * _clumps(n, rng)))
    # Granules lie above and below the nucleus, so that those over it show only in part.
    seen = granules * (1 - 0.6 * nucleus)
    return _over(picture, 0.8 * seen, _tint([kind.granule for kind in _ATLAS], labels, rng))


def _nucleus(
    x: Array,
    y: Array,
    radius: Array,
    blur: Array,
    labels: NDArray[np.int64],
    rng: np.random.Generator,
) -> Array:
    """Opacity of the nucleus, shape (n, 1, 28, 28): the union of lobes along an arc."""
    n = len(labels)
    fewest = np.array([kind.lobes[0] for kind in _ATLAS])[labels]
    most = np.array([kind.lobes[1] for kind in _ATLAS])[labels]
    count = rng.integers(fewest, most, endpoint=True).astype(np.float32).reshape(n, 1, 1, 1)
    arc = radius * _draw_each([kind.arc for kind in _ATLAS], labels, rng)
    span = _draw_each([kind.span for kind in _ATLAS], labels, rng)
    size = radius * _draw_each([kind.lobe for kind in _ATLAS], labels, rng)
    shift = radius * _draw_each([kind.eccentric for kind in _ATLAS], labels, rng)
    turn, aside = _uniform(rng, (0.0, 2 * np.pi), n), _uniform(rng, (0.0, 2 * np.pi), n)
    x, y = x - shift * np.cos(aside), y - shift * np.sin(aside)

    union = np.zeros((n, 1, SIDE, SIDE), dtype=np.float32)
    for lobe in range(MOST_LOBES):
        place = lobe / np.maximum(count - 1, 1) - 0.5
        angle = turn + span * place + _normal(rng, 0.08, n)
        out = arc * np.exp(_normal(rng, 0.08, n))
        far = np.hypot(x - out * np.cos(angle), y - out * np.sin(angle))
        opacity = _sigmoid((size * np.exp(_normal(rng, 0.08, n)) - far) / blur)
        union = np.maximum(union, np.where(lobe < count, opacity, 0))
    return union


def _smear(x: Array, y: Array, radius: Array, blur: Array, rng: np.random.Generator) -> Array:
    """Background, shape (n, 3, 28, 28), with red cells that keep clear of the cell's middle."""
    n = len(x)
    stain = rng.choice(len(_SMEARS), size=n, p=(0.55, 0.3, 0.15))
    picture = _tint(_SMEARS, stain, rng) + np.zeros_like(x)
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
    """Adds what preparation and camera vary: strength of the stain, light, focus, sensor noise."""
    n = len(picture)
    shape = (n, 3, 1, 1)
    # A stronger stain multiplies the optical density (Beer-Lambert): a power of the light.
    density = np.exp(_normal(rng, 0.22, n) + rng.normal(0, 0.05, shape).astype(np.float32))
    light = np.exp(_normal(rng, 0.08, n) + rng.normal(0, 0.02, shape).astype(np.float32))
    x, y = _grid(np.float32(0), np.float32(0))
    slope = 1 + (_normal(rng, 0.05, n) * x + _normal(rng, 0.05, n) * y) / SIDE
    image = np.clip(picture, 0.02, 1) ** density * light * slope
    image = _defocus(image, _uniform(rng, (0.0, 0.7), n))
    noise = rng.standard_normal(image.shape, dtype=np.float32) * _uniform(rng, (0.01, 0.045), n)
    exposed: NDArray[np.uint8] = np.rint(np.clip(image + noise, 0, 1) * 255).astype(np.uint8)
    return exposed


def _outline(x: Array, y: Array, radius: Array, rng: np.random.Generator) -> Array:
    """Radius of the cell in the direction of each pixel, shape (n, 1, 28, 28): not quite a circle."""
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
    """Opacity of granules over about a share `coverage` of the pixels, (n, 1, 28, 28)."""
    field = rng.random((n, 1, SIDE, SIDE), dtype=np.float32)
    return _sigmoid((coverage - field) / np.float32(0.06)) * (coverage > 0)


def _clumps(n: int, rng: np.random.Generator) -> Array:
    """Chromatin texture, shape (n, 1, 28, 28), of mean zero."""
    return _defocus(rng.standard_normal((n, 1, SIDE, SIDE), dtype=np.float32), np.float32(1))


def _defocus(image: Array, amount: Array | np.float32) -> Array:
    """Blends the images with their 3x3 binomial blur."""
    blurred = image
    for axis in (2, 3):
        width = [(0, 0)] * 4
        width[axis] = (1, 1)
        padded = np.pad(blurred, width, mode="edge")
        left, middle, right = (
            np.take(padded, range(step, step + SIDE), axis=axis) for step in range(3)
        )
        blurred = (left + 2 * middle + right) / 4
    return image + amount * (blurred - image)


def _over(picture: Array, opacity: Array, colour: Array) -> Array:
    return picture + opacity * (colour - picture)


def _tint(colours: object, labels: NDArray[np.int64], rng: np.random.Generator) -> Array:
    """Each image's own shade of its type's colour, shape (n, 3, 1, 1)."""
    base = np.array(colours, dtype=np.float32)[labels]
    shade = base + rng.normal(0, 0.02, (len(labels), 3)).astype(np.float32)
    tint: Array = np.clip(shade, 0.05, 1).reshape(-1, 3, 1, 1)
    return tint


def _draw_each(ranges: list[Range], labels: NDArray[np.int64], rng: np.random.Generator) -> Array:
    """A value for each image, shape (n, 1, 1, 1), uniform over its type's range."""
    low, high = np.array(ranges, dtype=np.float32)[labels].T
    return rng.uniform(low, high).astype(np.float32).reshape(-1, 1, 1, 1)


def _uniform(rng: np.random.Generator, bounds: Range, n: int) -> Array:
    return rng.uniform(*bounds, (n, 1, 1, 1)).astype(np.float32)


def _normal(rng: np.random.Generator, spread: float, n: int) -> Array:
    return rng.normal(0, spread, (n, 1, 1, 1)).astype(np.float32)


def _grid(x: Array | np.float32, y: Array | np.float32) -> tuple[Array, Array]:
    """Coordinates of the pixels relative to the points (x, y), in pixels from the middle."""
    line = np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2
    across, down = np.broadcast_arrays(line[None, :], line[:, None])
    return across.astype(np.float32) - x, down.astype(np.float32) - y


def _sigmoid(z: Array) -> Array:
    shares: Array = 1 / (1 + np.exp(-np.clip(3 * z, -30, 30)))
    return shares
