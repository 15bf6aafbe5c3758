"""The layers of the U-Net."""

from __future__ import annotations

import torch
from torch import nn

MAX_GROUPS = 8
"""Groups of a GroupNorm, if there are that many channels."""

CONVOLUTIONS: dict[int, type[nn.Conv2d | nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, type[nn.ConvTranspose2d | nn.ConvTranspose3d]] = {
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
POOLS: dict[int, type[nn.MaxPool2d | nn.MaxPool3d]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
"""Layers by the number of axes."""


class Network(nn.Module):
    """U-Net, which returns logits (N, outputs, *size) from images (N, C, *size).

    Images have more than 2**depth pixels along each axis.
    """

    def __init__(self, channels: int, outputs: int, width: int, depth: int, *, rank: int) -> None:
        super().__init__()
        widths = [width << level for level in range(depth + 1)]
        self.first = _block(channels, width, rank)
        # An odd side is rounded up, so that no pixel is left out.
        self.pool = POOLS[rank](2, ceil_mode=True)
        self.down = nn.ModuleList(_block(w, 2 * w, rank) for w in widths[:-1])
        self.up = nn.ModuleList(TRANSPOSED[rank](2 * w, w, 2, 2) for w in widths[-2::-1])
        self.merge = nn.ModuleList(_block(2 * w, w, rank) for w in widths[-2::-1])
        self.head = CONVOLUTIONS[rank](width, outputs, 1)

    def maps(self, images: torch.Tensor) -> torch.Tensor:
        """Return the maps that the head reads, (N, width, *size)."""
        x = self.first(images)
        skipped = []
        for block in self.down:
            skipped.append(x)
            x = block(self.pool(x))
        for up, merge in zip(self.up, self.merge, strict=True):
            same = skipped.pop()
            inside = (..., *(slice(side) for side in same.shape[2:]))
            x = merge(torch.cat([same, up(x)[inside]], 1))
        last: torch.Tensor = x
        return last

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        logits: torch.Tensor = self.head(self.maps(images))
        return logits


def _block(inputs: int, outputs: int, rank: int) -> nn.Sequential:
    """Return two convolutions of 3 taps along each axis, with a GroupNorm and a ReLU after each."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        convolution = CONVOLUTIONS[rank](channels, outputs, 3, padding=1, bias=False)
        layers += [convolution, nn.GroupNorm(_groups(outputs), outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def _groups(channels: int) -> int:
    """Return the most groups up to 8 that divide the channels."""
    return next(g for g in range(min(MAX_GROUPS, channels), 0, -1) if channels % g == 0)
