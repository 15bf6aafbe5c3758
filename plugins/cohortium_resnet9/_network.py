"""The layers of ResNet-9."""

from __future__ import annotations

import torch
from torch import nn

MAX_GROUPS = 32
"""Groups of a GroupNorm, if there are that many channels."""


class Network(nn.Module):
    """ResNet-9, which returns logits (N, classes) from images (N, C, H, W).

    Images have at least 8×8 pixels.
    """

    def __init__(self, channels: int, classes: int, width: int, norm: str) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(_block(channels, w, norm), _block(w, 2 * w, norm, pool=True))
        self.first = nn.Sequential(_block(2 * w, 2 * w, norm), _block(2 * w, 2 * w, norm))
        self.middle = nn.Sequential(
            _block(2 * w, 4 * w, norm, pool=True), _block(4 * w, 8 * w, norm, pool=True)
        )
        self.second = nn.Sequential(_block(8 * w, 8 * w, norm), _block(8 * w, 8 * w, norm))
        self.head = nn.Linear(8 * w, classes)

    def maps(self, images: torch.Tensor) -> torch.Tensor:
        """Return the maps of which the head takes the greatest values.

        Shapes are for 28×28 images.
        """
        x = self.stem(images)  # (N, 2w, 14, 14)
        x = x + self.first(x)  # (N, 2w, 14, 14)
        x = self.middle(x)  # (N, 8w, 3, 3)
        last: torch.Tensor = x + self.second(x)  # (N, 8w, 3, 3)
        return last

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        logits: torch.Tensor = self.head(self.maps(images).amax((2, 3)))
        return logits


def _block(inputs: int, outputs: int, norm: str, *, pool: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs) if norm == "batch" else nn.GroupNorm(_groups(outputs), outputs),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


def _groups(channels: int) -> int:
    """Return the most groups up to 32 that divide the channels."""
    return next(g for g in range(min(MAX_GROUPS, channels), 0, -1) if channels % g == 0)
