"""The weighted mean of two networks."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class MixedOutputs(nn.Module):
    """The weighted mean of the outputs of two networks, such as logits (N, classes).

    Attributes:
        first: One network.
        second: The other one.
        share: Weight of the second one, from 0 to 1.  The first one has the rest.
    """

    def __init__(self, first: nn.Module, second: nn.Module, share: float) -> None:
        super().__init__()
        self.first, self.second, self.share = first, second, share

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the mean of the outputs.

        Each network gets inputs of its own, because a network may work in place.
        """
        first: Tensor = self.first(inputs.clone())
        second: Tensor = self.second(inputs)
        return (1 - self.share) * first + self.share * second


def mix(first: nn.Module, second: nn.Module, share: float) -> nn.Module:
    """Return a network with the weighted mean of the outputs of two networks.

    These are not changed. For two linear layers it is one linear layer with the mean weights.

    Args:
        first: One network.
        second: The other one.
        share: Weight of the second one.
    """
    first, second = copy.deepcopy(first), copy.deepcopy(second)
    if type(first) is nn.Linear and type(second) is nn.Linear:
        with torch.no_grad():
            for mine, other in zip(first.parameters(), second.parameters(), strict=True):
                mine.lerp_(other, share)
        return first
    return MixedOutputs(first, second, share)
