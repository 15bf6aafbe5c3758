"""What a model with fixed features learns: linear layers from zero, which need no seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def linear_head(features: int, classes: int) -> nn.Linear:
    """A linear layer from zero; nothing is drawn for it from torch's generator.

    Args:
        features: D, the number of inputs.
        classes: The number of logits.
    """
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        head = nn.Linear(features, classes)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    return head


def whitened_linear_head(features: int, classes: int, *, floor: float, norm: float) -> nn.Module:
    """A linear layer from zero, behind a whitening that is learned, privately, in a prelude.

    Args:
        features: D, the number of inputs.
        classes: The number of logits.
        floor: Directions with less than this share of the whole second moment count as if they
            had it.
        norm: Of the inputs.
    """
    from cohortium.learning.private_whitening import PrivateWhiteningHead

    return PrivateWhiteningHead(features, classes, floor=floor, norm=norm)
