"""A model: one linear layer on the pixels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cohortium.plugin import DataSpec


@frozen
class Linear:
    """Logistic regression.

    Attributes:
        bias: Whether each class has a bias of its own.
    """

    bias: bool = True

    def preprocess(self, images: Tensor) -> Tensor:
        """Intensities from [0, 1] to [-1, 1], as vectors."""
        return images.flatten(1) * 2 - 1

    def build(self, spec: DataSpec, seed: int) -> nn.Module:
        """The layer, drawn from `seed`; torch's own generator stays where it is."""
        import torch
        from torch import nn

        pixels = math.prod(spec.shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Linear(pixels, len(spec.classes), bias=self.bias)
