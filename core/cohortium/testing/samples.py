"""Small things to try a plugin on, drawn from fixed seeds: images, networks, cohorts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cohortium.data.examples import DataSpec, Examples

if TYPE_CHECKING:
    from torch import Tensor, nn

CLASSES = ("round", "square", "star", "cross")
"""Classes of the sample images."""

SIDE = 8
"""Height and width of the sample images, in pixels."""


def examples(number: int, *, seed: int = 0) -> Examples:
    """Noise images of 3 channels, with labels and a client column, none of them sorted."""
    rng = np.random.default_rng(seed)
    return Examples(
        rng.integers(0, 256, (number, 3, SIDE, SIDE), dtype=np.uint8),
        rng.permutation(np.arange(number, dtype=np.int64) % len(CLASSES)),
        rng.permutation(np.arange(number, dtype=np.int64) % 12),
    )


def images(number: int, spec: DataSpec, *, seed: int = 0) -> Tensor:
    """Noise images as a model's `prepare` is given them, shape (N, C, H, W), in [0, 1]."""
    import torch

    rng = np.random.default_rng(seed)
    shape = (number, spec.channels, spec.height, spec.width)
    return torch.from_numpy(rng.integers(0, 256, shape).astype(np.float32) / 255)


def spec(channels: int, height: int, width: int) -> DataSpec:
    """What is public about sample images of another shape."""
    return DataSpec(channels=channels, height=height, width=width, classes=CLASSES, examples=256)


def network(*, batch_norm: bool = False) -> nn.Module:
    """A network of 188 parameters for the sample images; with equal weights every time."""
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
