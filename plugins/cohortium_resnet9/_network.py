"""The layers of ResNet-9."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

MAX_GROUPS = 32
"""Groups of a GroupNorm, if there are that many channels."""

CONVOLUTIONS: dict[int, type[nn.Conv2d | nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
POOLS: dict[int, type[nn.MaxPool2d | nn.MaxPool3d]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
BATCH_NORMS: dict[int, type[nn.BatchNorm2d | nn.BatchNorm3d]] = {
    2: nn.BatchNorm2d,
    3: nn.BatchNorm3d,
}
"""Layers by the number of axes."""


class Network(nn.Module):
    """ResNet-9, which returns logits (N, classes) from images (N, C, *size).

    Images have at least 8 pixels along each axis.
    """

    def __init__(
        self, channels: int, classes: int, width: int, norm: str, *, rank: int = 2
    ) -> None:
        super().__init__()
        w, block = width, partial(_block, norm=norm, rank=rank)
        self.stem = nn.Sequential(block(channels, w), block(w, 2 * w, pool=True))
        self.first = nn.Sequential(block(2 * w, 2 * w), block(2 * w, 2 * w))
        self.middle = nn.Sequential(block(2 * w, 4 * w, pool=True), block(4 * w, 8 * w, pool=True))
        self.second = nn.Sequential(block(8 * w, 8 * w), block(8 * w, 8 * w))
        self.head = nn.Linear(8 * w, classes)

    def maps(self, images: torch.Tensor) -> torch.Tensor:
        """Return the maps of which the head takes the greatest values.

        They are (N, 8w, 3, 3) of 28×28 images.
        """
        return self.maps_by_stage(images)[-1]

    def maps_by_stage(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the maps at the end of each stage.

        Shapes are for 28×28 images.
        """
        x = self.stem(images)  # (N, 2w, 14, 14)
        first = x + self.first(x)  # (N, 2w, 14, 14)
        x = self.middle(first)  # (N, 8w, 3, 3)
        return first, x + self.second(x)  # (N, 8w, 3, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        maps = self.maps(images)
        logits: torch.Tensor = self.head(maps.amax(tuple(range(2, maps.ndim))))
        return logits


def _block(inputs: int, outputs: int, *, norm: str, rank: int, pool: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = [
        CONVOLUTIONS[rank](inputs, outputs, 3, padding=1, bias=False),
        BATCH_NORMS[rank](outputs) if norm == "batch" else nn.GroupNorm(_groups(outputs), outputs),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers, *([POOLS[rank](2)] if pool else []))


def _groups(channels: int) -> int:
    """Return the most groups up to 32 that divide the channels."""
    return next(g for g in range(min(MAX_GROUPS, channels), 0, -1) if channels % g == 0)
