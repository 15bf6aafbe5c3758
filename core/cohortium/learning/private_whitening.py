"""A linear layer behind a whitening that is learned, privately, before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cohortium.learning.statistics_rounds import mark_statistics_parameters


class PrivateWhiteningHead(nn.Module):
    """Logits (N, classes) from features (N, D) of one norm.

    The prelude learns S, which tends to a multiple of the features' second moment E[x xᵀ]: the
    loss -xᵀSx/‖x‖ has the gradient -x xᵀ/‖x‖, of the features' norm for every example.  They then
    go through (S/tr S + floor)^(-1/2), and back to their norm.

    Attributes:
        moments: S, a linear layer from features to features, zero at first.
        head: The linear layer, zero at first.
    """

    def __init__(self, features: int, classes: int, *, floor: float, norm: float) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.moments = nn.Linear(features, features, bias=False)
            self.head = nn.Linear(features, classes)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        mark_statistics_parameters(self.moments)
        self._floor, self._norm = floor, norm
        self._made: tuple[Tensor, Tensor] | None = None

    def prelude(self, inputs: Tensor) -> Tensor:
        """A loss for each input, shape (N,)."""
        products: Tensor = self.moments(inputs) * inputs
        return products.sum(1) / -self._norm

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits; unwhitened while there are no moments."""
        with torch.no_grad():
            inputs = inputs @ self._map().to(inputs)
            inputs = inputs * (self._norm / inputs.norm(dim=1, keepdim=True).clamp(min=1e-6))
        logits: Tensor = self.head(inputs)
        return logits

    def _map(self) -> Tensor:
        """The whitening, shape (D, D); made anew when S has changed."""
        moments = self.moments.weight.detach()
        if self._made is not None and (
            # A traced program takes the map as it is: S does not change any more.
            torch.compiler.is_compiling() or torch.equal(self._made[0], moments)
        ):
            return self._made[1]
        self._made = moments.clone(), _whitening(moments, self._floor)
        return self._made[1]


def _whitening(moments: Tensor, floor: float) -> Tensor:
    """(S/tr S + floor)^(-1/2), symmetric; variances that noise has made negative count as none."""
    second = moments.double()
    second = (second + second.T) / 2
    trace = second.trace()
    if not trace > 0:
        return torch.eye(len(second), dtype=second.dtype, device=second.device)
    variances, turns = torch.linalg.eigh(second / trace)
    root: Tensor = (turns * (variances.clamp(min=0) + floor).rsqrt()) @ turns.T
    return root
