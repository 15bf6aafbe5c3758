"""Linear layers from zero, for models with fixed features.

They need no seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def linear_head(features: int, classes: int) -> nn.Linear:
    """Build a linear layer whose weights are zero.

    It draws nothing from torch's generator.

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
    """Build a linear layer from zero, behind a privately learned whitening.

    The statistics rounds learn the whitening.

    Args:
        features: D, the number of inputs.
        classes: The number of logits.
        floor: Lower limit of a direction's share of the whole second moment.  A direction with a
            smaller share counts as if it had this one.
        norm: Norm of the inputs.
    """
    from cohortium.learning.private_whitening import PrivateWhiteningHead

    return PrivateWhiteningHead(features, classes, floor=floor, norm=norm)
