"""The layers of ResNet-18: convolutions without bias, a norm after each."""

from __future__ import annotations

import torch
from torch import nn

MAX_GROUPS = 32
"""Groups of a GroupNorm, if there are that many channels."""


class Network(nn.Module):
    """ResNet-18, which returns logits (N, classes) from images (N, C, H, W)."""

    def __init__(self, channels: int, classes: int, width: int, stem: str, norm: str) -> None:
        super().__init__()
        w = width
        large = stem == "large"
        self.stem = nn.Sequential(
            nn.Conv2d(
                channels, w, 7 if large else 3, 2 if large else 1, 3 if large else 1, bias=False
            ),
            _norm(w, norm),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1) if large else nn.Identity(),
        )
        self.stages = nn.Sequential(
            _stage(w, w, 1, norm),
            _stage(w, 2 * w, 2, norm),
            _stage(2 * w, 4 * w, 2, norm),
            _stage(4 * w, 8 * w, 2, norm),
        )
        self.head = nn.Linear(8 * w, classes)

    def maps(self, images: torch.Tensor) -> torch.Tensor:
        """Return the maps that the head averages.

        Shapes are for 28×28 images and the small stem.
        """
        x = self.stem(images)  # (N, w, 28, 28)
        last: torch.Tensor = self.stages(x)  # (N, 8w, 4, 4)
        return last

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        logits: torch.Tensor = self.head(self.maps(images).mean((2, 3)))
        return logits


class Block(nn.Module):
    """A residual block: relu(norm(conv(relu(norm(conv(x))))) + x).

    There is a 1×1 convolution of x where the shape changes.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            _norm(outputs, norm),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            _norm(outputs, norm),
        )
        self.way: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.way = nn.Sequential(conv, _norm(outputs, norm))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map shape (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        return torch.relu(self.body(x) + self.way(x))


def _stage(inputs: int, outputs: int, stride: int, norm: str) -> nn.Sequential:
    return nn.Sequential(Block(inputs, outputs, stride, norm), Block(outputs, outputs, 1, norm))


def _norm(channels: int, norm: str) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    groups = next(g for g in range(min(MAX_GROUPS, channels), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)
