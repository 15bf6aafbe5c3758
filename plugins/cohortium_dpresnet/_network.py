"""The layers of DPResNet; all convolutions are 3×3 with padding 1 and no bias."""

from __future__ import annotations

import torch
from torch import nn

MOST_GROUPS = 32
"""Groups of a GroupNorm, where there are that many channels."""


class Network(nn.Module):
    """Logits (N, classes) from images (N, C, H, W)."""

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(_block(channels, w), nn.ReLU(), _block(w, 2 * w), nn.ReLU())
        self.residual = nn.Sequential(_block(2 * w, 2 * w), nn.ReLU(), _block(2 * w, 2 * w))
        self.middle = _pair(2 * w, 4 * w)
        self.last = _pair(4 * w, 8 * w)
        self.head = nn.Linear(8 * w, classes)

    def maps(self, images: torch.Tensor) -> torch.Tensor:
        """What the head averages; shapes for 28×28 images."""
        x = self.stem(images)  # (N, 2w, 28, 28)
        x = x + self.residual(x)  # (N, 2w, 28, 28), no ReLU after the sum
        last: torch.Tensor = self.last(self.middle(x))  # (N, 8w, 7, 7)
        return last

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits."""
        logits: torch.Tensor = self.head(self.maps(images).mean((2, 3)))
        return logits


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.GroupNorm(_groups(outputs), outputs),
    )


def _pair(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        _block(inputs, outputs, stride=2), nn.ReLU(), _block(outputs, outputs), nn.ReLU()
    )


def _groups(channels: int) -> int:
    """The most groups up to 32 that divide the channels."""
    return next(g for g in range(min(MOST_GROUPS, channels), 0, -1) if channels % g == 0)
