"""Small samples for checks, from fixed seeds: images, networks, cohorts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cohortium.data.examples import DataSpec, Examples
from cohortium.data.multiclass import Multiclass

if TYPE_CHECKING:
    from torch import Tensor, nn

CLASSES = ("round", "square", "star", "cross")
"""Classes of the sample images."""

TASK = Multiclass(CLASSES)
"""Task of the sample images."""

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


def spec(channels: int, *size: int) -> DataSpec:
    """Return the public description of sample images of another shape."""
    return DataSpec(channels=channels, size=size, task=TASK, examples=256)


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
