"""A linear layer behind a whitening that is learned, privately, before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cohortium.plugin import in_prelude


class Whitened(nn.Module):
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
        in_prelude(self.moments)
        self._floor, self._norm = floor, norm

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
        """The whitening, shape (D, D), symmetric; noise's negative variances count as none."""
        second = self.moments.weight.detach().double()
        second = (second + second.T) / 2
        trace = second.trace()
        if not trace > 0:
            return torch.eye(len(second), dtype=second.dtype, device=second.device)
        variances, turns = torch.linalg.eigh(second / trace)
        gains = (variances.clamp(min=0) + self._floor).rsqrt()
        root: Tensor = (turns * gains) @ turns.T
        return root
