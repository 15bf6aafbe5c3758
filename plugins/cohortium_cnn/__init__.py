"""A small convolutional network, for quick studies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import ge, le

from cohortium.plugin import DataSpec, Model, Offer, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

COHORTIUM_API = 1

VOLUME = 3
"""Axes of a volume."""


@frozen
class CNN:
    """Three strided convolutions with GroupNorm, a global mean and a linear layer.

    Images have two axes or three.

    Attributes:
        width: Channels of the first convolution.  The last has four times as many.
    """

    width: int = field(default=16, validator=[ge(1), le(1 << 14)])

    def preprocess(self, images: Tensor) -> Tensor:
        """Scale intensities from [0, 1] to [-1, 1]."""
        return images.sub(0.5).div_(0.5)

    def build(self, spec: DataSpec, seed: int) -> nn.Module:
        """Build the network with torch's default initialisation, drawn from `seed`."""
        import torch
        from torch import nn

        w, rank = self.width, len(spec.size)
        convolution = nn.Conv3d if rank == VOLUME else nn.Conv2d
        mean = nn.AdaptiveAvgPool3d if rank == VOLUME else nn.AdaptiveAvgPool2d
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(
                *(convolution(spec.channels, w, 3, 2, 1), nn.GroupNorm(1, w), nn.ReLU()),
                *(convolution(w, 2 * w, 3, 2, 1), nn.GroupNorm(2, 2 * w), nn.ReLU()),
                *(convolution(2 * w, 4 * w, 3, 1, 1), nn.GroupNorm(4, 4 * w), nn.ReLU()),
                mean(1),
                nn.Flatten(),
                nn.Linear(4 * w, spec.output_shape[0]),
            )


@hookimpl
def cohortium_models() -> list[Offer[Model]]:
    """Offer `cnn`."""
    return [Offer("cnn", CNN, "Three convolutions with GroupNorm, for quick studies.")]
