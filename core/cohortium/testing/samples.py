"""Small samples for checks, from fixed seeds: images, networks, cohorts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import frozen

from cohortium.data.examples import DataSpec, Examples
from cohortium.data.multiclass import Multiclass

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from cohortium.data.task import Task

CLASSES = ("round", "square", "star", "cross")
"""Classes of the sample images."""

TASK = Multiclass(CLASSES)
"""Task of the sample images."""


@frozen
class PixelClasses(Multiclass):
    """One class for each pixel, the task of sample images for networks that segment.

    The loss of an image is the mean over its pixels.
    """

    def named(
        self, labels: Mapping[str, NDArray[Any]], names: tuple[str, ...], where: str
    ) -> PixelClasses:
        """Return the task with `names`, or with the numbers of the labels."""
        return PixelClasses(super().named(labels, names, where).names)

    def output_shape(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Return (K, *size)."""
        return (len(self.names), *size)

    def sample_labels(
        self, size: tuple[int, ...], count: int, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Return masks of noise, shape (count, *size)."""
        return rng.integers(0, len(self.names), (count, *size))

    def losses(self, outputs: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the mean cross-entropy of each image's pixels."""
        return super().losses(outputs, labels, weights).flatten(1).mean(1)


PIXEL_TASK = PixelClasses(CLASSES)
"""Task of the sample images for networks that segment."""

SIDE = 8
"""Height and width of the sample images, in pixels."""


def examples(number: int, *, seed: int = 0) -> Examples:
    """Return noise images of 3 channels, with labels and a client column.

    None of them is sorted.
    """
    rng = np.random.default_rng(seed)
    return Examples(
        rng.integers(0, 256, (number, 3, SIDE, SIDE), dtype=np.uint8),
        rng.permutation(np.arange(number, dtype=np.int64) % len(CLASSES)),
        rng.permutation(np.arange(number, dtype=np.int64) % 12),
    )


def images(number: int, spec: DataSpec, *, seed: int = 0) -> Tensor:
    """Return noise images for a model's `preprocess`.

    They have shape (N, C, …), and values in [0, 1].
    """
    import torch

    rng = np.random.default_rng(seed)
    shape = (number, *spec.shape)
    return torch.from_numpy(rng.integers(0, 256, shape).astype(np.float32) / 255)


def spec(channels: int, *size: int, task: Task = TASK) -> DataSpec:
    """Return the public description of sample images of another shape."""
    return DataSpec(channels=channels, size=size, task=task, examples=256)


def network(*, batch_norm: bool = False) -> nn.Module:
    """Build a network of 188 parameters for the sample images.

    Its weights are equal every time.
    """
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1),
            nn.BatchNorm2d(4) if batch_norm else nn.GroupNorm(2, 4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16, len(CLASSES)),
        )
