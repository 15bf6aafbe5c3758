"""Images of an attack: made up by default, or the study's own on request."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from attrs import field, frozen

from cohortium.catalog.construction import build_part
from cohortium.catalog.discovery import discover
from cohortium.crypto.randomness import Seeds
from cohortium.data.examples import Examples
from cohortium.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cohortium.data.examples import DataSpec
    from cohortium.rounds.run_config import RunConfig
    from cohortium.runs.prepare import PreparedStudy

Origin = Literal["made-up", "study"]
"""Source of the images of an attack."""

OTHERS: Final = 64
"""Least number of unrelated images with which a reconstruction is compared."""

MAX_VALUES: Final = 1 << 25
"""Most values of all made-up images together. They take 128 MiB as `float32`."""

DRAWN_BY: Final = ("phantom", "phantom-fields")
"""Data sets of made-up images, which an attack takes if their shape is the study's."""

_SHAPES: Final = 3
_PART: Final = 256


@frozen(eq=False, kw_only=True)
class AttackImages:
    """Images of an attack.

    Attributes:
        sites: Examples of each site that takes part in the round.
        others: Unrelated stored images, shape (N, C, …). No site has them.
        origin: Source of the images.
    """

    sites: tuple[Examples, ...] = field(repr=False)
    others: NDArray[Any] = field(repr=False)
    origin: Origin


def made_up_images(run_config: RunConfig, seed: int) -> AttackImages:
    """Draw images for every site of a round, as many as the study declares.

    A study of large images gets fewer, so that all of them fit into memory.

    Args:
        run_config: The study's configuration.
        seed: Seed of the images and of their labels.
    """
    spec, federation_spec = run_config.spec, run_config.federation_spec
    sites = federation_spec.cohort_size
    room = MAX_VALUES // (2 * sites * math.prod(spec.shape))
    wanted = min(math.ceil(federation_spec.examples_per_site), room)
    each = max(run_config.workload.fewest, wanted, 1)
    rng = Seeds(seed).generator("attack images")
    count = sites * each
    images = _draw(spec, count + max(count, OTHERS), seed, rng)
    labels = rng.permutation(spec.task.sample_labels(spec.size, count, rng))
    return AttackImages(
        sites=tuple(
            Examples(images[k * each : (k + 1) * each], labels[k * each : (k + 1) * each])
            for k in range(sites)
        ),
        others=images[count:],
        origin="made-up",
    )


def study_images(prepared: PreparedStudy) -> AttackImages:
    """Return the training images of the study's simulated sites.

    Raises:
        StudyError: The study is a deployment, whose data are in the hospitals.
        DataError: The data set has too few images that no site has.
    """
    splits = prepared.splits
    others = [part.images for part in (splits.test, splits.validation) if part is not None]
    if sum(map(len, others)) < OTHERS:
        raise DataError(
            f"the study's data set has fewer than {OTHERS} test and validation images, with which "
            "an attack compares its result; use --images made-up."
        )
    cohort = range(prepared.run_config.federation_spec.cohort_size)
    return AttackImages(
        sites=tuple(splits.train.select(prepared.partition[site]) for site in cohort),
        others=np.concatenate(others),
        origin="study",
    )


def _draw(spec: DataSpec, count: int, seed: int, rng: np.random.Generator) -> NDArray[Any]:
    """Return made-up stored images, shape (count, C, …)."""
    catalog = discover()
    for name in DRAWN_BY:
        if name not in catalog.names("dataset"):
            continue
        table = {"name": name, "validation": 0, "test": 0, "seed": seed}
        few = build_part(catalog, "dataset", {**table, "examples": 1}, where="the attack").load()
        if few.train.images.shape[1:] != spec.shape:
            continue
        whole = build_part(catalog, "dataset", {**table, "examples": count}, where="the attack")
        low, high = few.spec.intensity_range
        shown = whole.load().train.images.astype(np.float32)
        return _to_stored((shown - low) / (high - low), spec)
    parts = [min(_PART, count - start) for start in range(0, count, _PART)]
    return np.concatenate([_to_stored(_shapes(spec.shape, n, rng), spec) for n in parts])


def _shapes(shape: tuple[int, ...], count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return images of discs and boxes before a slope, in [0, 1], shape (count, *shape)."""
    channels, *size = shape
    places = np.meshgrid(*(np.linspace(-1, 1, side) for side in size), indexing="ij")
    column = (count, *[1] * len(size))
    slope = np.zeros((count, *size))
    for place in places:
        slope += rng.uniform(-0.2, 0.2, column) * place
    images = np.repeat((0.35 + slope)[:, None], channels, axis=1)
    for _ in range(_SHAPES):
        power = np.where(rng.random(column) < 0.5, 2.0, 16.0)  # noqa: PLR2004 - a disc or a box
        distance = np.zeros((count, *size))
        for place in places:
            away = (place - rng.uniform(-0.6, 0.6, column)) / rng.uniform(0.25, 0.55, column)
            distance += np.abs(away) ** power
        colour = rng.uniform(0, 1, (count, channels, *[1] * len(size)))
        images = np.where((distance < 1)[:, None], colour, images)
    return images.clip(0, 1).astype(np.float32)


def _to_stored(images: NDArray[np.float32], spec: DataSpec) -> NDArray[Any]:
    """Return images in [0, 1] as the study stores them."""
    low, high = spec.intensity_range
    stored = low + images * (high - low)
    if spec.pixel_type == "float32":
        return stored.astype(np.float32)
    limits = np.iinfo(spec.pixel_type)
    return stored.round().clip(limits.min, limits.max).astype(spec.pixel_type)
