"""The layers of ResNet-18: convolutions without bias, a norm after each."""

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
    """ResNet-18, which returns logits (N, classes) from images (N, C, *size)."""

    def __init__(
        self, channels: int, classes: int, width: int, stem: str, norm: str, *, rank: int = 2
    ) -> None:
        super().__init__()
        w, stage = width, partial(_stage, norm=norm, rank=rank)
        large = stem == "large"
        self.stem = nn.Sequential(
            CONVOLUTIONS[rank](
                channels, w, 7 if large else 3, 2 if large else 1, 3 if large else 1, bias=False
            ),
            _norm(w, norm, rank),
            nn.ReLU(),
            POOLS[rank](3, 2, 1) if large else nn.Identity(),
        )
        self.stages = nn.Sequential(
            stage(w, w, 1), stage(w, 2 * w, 2), stage(2 * w, 4 * w, 2), stage(4 * w, 8 * w, 2)
        )
        self.head = nn.Linear(8 * w, classes)

    def maps(self, images: torch.Tensor) -> torch.Tensor:
        """Return the maps that the head averages.

        They are (N, 8w, 4, 4) of 28×28 images with the small stem.
        """
        return self.maps_by_stage(images)[-1]

    def maps_by_stage(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the maps at the end of each stage, four of them."""
        x = self.stem(images)  # (N, w, 28, 28) of 28×28 images, with the small stem
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return tuple(found)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        maps = self.maps(images)
        logits: torch.Tensor = self.head(maps.mean(tuple(range(2, maps.ndim))))
        return logits


class Block(nn.Module):
    """A residual block: relu(norm(conv(relu(norm(conv(x))))) + x).

    There is a 1×1 convolution of x where the shape changes.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str, rank: int) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[rank]
        self.body = nn.Sequential(
            convolution(inputs, outputs, 3, stride, 1, bias=False),
            _norm(outputs, norm, rank),
            nn.ReLU(),
            convolution(outputs, outputs, 3, 1, 1, bias=False),
            _norm(outputs, norm, rank),
        )
        self.way: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            conv = convolution(inputs, outputs, 1, stride, bias=False)
            self.way = nn.Sequential(conv, _norm(outputs, norm, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map shape (N, inputs, *size) to (N, outputs, *size / stride)."""
        return torch.relu(self.body(x) + self.way(x))


def _stage(inputs: int, outputs: int, stride: int, *, norm: str, rank: int) -> nn.Sequential:
    return nn.Sequential(
        Block(inputs, outputs, stride, norm, rank), Block(outputs, outputs, 1, norm, rank)
    )


def _norm(channels: int, norm: str, rank: int) -> nn.Module:
    if norm == "batch":
        return BATCH_NORMS[rank](channels)
    groups = next(g for g in range(min(MAX_GROUPS, channels), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)
