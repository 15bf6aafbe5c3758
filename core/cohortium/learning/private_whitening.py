"""A linear layer behind a whitening that statistics rounds learn privately."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cohortium.learning.statistics_rounds import mark_statistics_parameters
from cohortium.learning.whitening import scale_to_norm


class PrivateWhiteningHead(nn.Module):
    """Layer from features (N, D) of one norm to logits (N, classes).

    The statistics rounds learn S, which tends to a multiple of the features' second moment E[x xᵀ].
    The loss -xᵀSx/‖x‖ has the gradient -x xᵀ/‖x‖, whose norm is the features' norm for every
    example.  The layer multiplies features by (S/tr S + floor)^(-1/2) and scales them back to their
    norm.

    Attributes:
        moments: S, a linear layer from features to features, zero at first.
        head: The linear layer, zero at first.
        norm: Norm of the features, before and after the whitening.
    """

    def __init__(self, features: int, classes: int, *, floor: float, norm: float) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.moments = nn.Linear(features, features, bias=False)
            self.head = nn.Linear(features, classes)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        mark_statistics_parameters(self.moments)
        self._floor, self.norm = floor, norm
        self._made: tuple[Tensor, Tensor] | None = None

    def statistics_loss(self, inputs: Tensor) -> Tensor:
        """Return a loss for each input, shape (N,)."""
        products: Tensor = self.moments(inputs) * inputs
        return products.sum(1) / -self.norm

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits.

        While there are no moments, the inputs are not whitened.
        """
        with torch.no_grad():
            inputs = inputs @ self.whitening().to(inputs)
            inputs = scale_to_norm(inputs, self.norm)
        logits: Tensor = self.head(inputs)
        return logits

    def whitening(self) -> Tensor:
        """Return the map of features x to x·W, shape (D, D), in double precision.

        It is computed again only when S has changed.
        """
        moments = self.moments.weight.detach()
        if self._made is not None and (
            # A traced program uses the current map, because S no longer changes.
            torch.compiler.is_compiling() or torch.equal(self._made[0], moments)
        ):
            return self._made[1]
        self._made = moments.clone(), _whitening(moments, self._floor)
        return self._made[1]


def _whitening(moments: Tensor, floor: float) -> Tensor:
    """Return (S/tr S + floor)^(-1/2), which is symmetric.

    Variances that noise has made negative count as zero.
    """
    second = moments.double()
    second = (second + second.T) / 2
    trace = second.trace()
    if not trace > 0:
        return torch.eye(len(second), dtype=second.dtype, device=second.device)
    variances, turns = torch.linalg.eigh(second / trace)
    root: Tensor = (turns * (variances.clamp(min=0) + floor).rsqrt()) @ turns.T
    return root
