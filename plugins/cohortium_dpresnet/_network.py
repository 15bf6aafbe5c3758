"""The layers of DPResNet.

All convolutions have 3 taps along each axis, padding 1 and no bias.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_GROUPS = 32
"""Groups of a GroupNorm, if there are that many channels."""

MIN_VARIANCE = 1e-5

CONVOLUTIONS: dict[int, type[nn.Conv2d | nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
"""Convolutions by the number of axes."""


class Standardised(nn.Module):
    """Kernels standardised to mean 0 and variance 1.

    The method is that of Qiao et al. 2019 (arXiv 1903.10520).  Mean and variance are those of one
    output's weights, so that examples do not mix.
    """

    def forward(self, kernels: torch.Tensor) -> torch.Tensor:
        """Return standardised kernels, shape (outputs, inputs, 3, …), as the input."""
        rows = kernels.flatten(1)
        variance, mean = torch.var_mean(rows, 1, correction=0, keepdim=True)
        return ((rows - mean) * (variance + MIN_VARIANCE).rsqrt()).view_as(kernels)


class Network(nn.Module):
    """DPResNet, which returns logits (N, classes) from images (N, C, *size)."""

    def __init__(
        self, channels: int, classes: int, width: int, *, rank: int = 2, standardise: bool
    ) -> None:
        super().__init__()
        w = width
        block = partial(_block, rank=rank, standardise=standardise)
        self.stem = nn.Sequential(block(channels, w), nn.ReLU(), block(w, 2 * w), nn.ReLU())
        self.residual = nn.Sequential(block(2 * w, 2 * w), nn.ReLU(), block(2 * w, 2 * w))
        self.middle = _pair(block, 2 * w, 4 * w)
        self.last = _pair(block, 4 * w, 8 * w)
        self.head = nn.Linear(8 * w, classes)

    def maps(self, images: torch.Tensor) -> torch.Tensor:
        """Return the maps that the head averages, (N, 8w, 7, 7) of 28×28 images."""
        return self.maps_by_stage(images)[-1]

    def maps_by_stage(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the maps at the end of each stage.

        Shapes are for 28×28 images.
        """
        x = self.stem(images)  # (N, 2w, 28, 28)
        x = x + self.residual(x)  # (N, 2w, 28, 28), no ReLU after the sum
        middle = self.middle(x)  # (N, 4w, 14, 14)
        return x, middle, self.last(middle)  # (N, 8w, 7, 7)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        maps = self.maps(images)
        logits: torch.Tensor = self.head(maps.mean(tuple(range(2, maps.ndim))))
        return logits


def _block(
    inputs: int, outputs: int, stride: int = 1, *, rank: int, standardise: bool
) -> nn.Sequential:
    convolution = CONVOLUTIONS[rank](inputs, outputs, 3, stride, 1, bias=False)
    if standardise:
        nn.utils.parametrize.register_parametrization(convolution, "weight", Standardised())
    return nn.Sequential(convolution, nn.GroupNorm(_groups(outputs), outputs))


def _pair(block: Callable[..., nn.Sequential], inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        block(inputs, outputs, stride=2), nn.ReLU(), block(outputs, outputs), nn.ReLU()
    )


def _groups(channels: int) -> int:
    """Return the most groups up to 32 that divide the channels."""
    return next(g for g in range(min(MAX_GROUPS, channels), 0, -1) if channels % g == 0)
