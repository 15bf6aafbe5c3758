"""A linear head from released moments."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from cohortium.plugin import linear_head, mark_statistics_parameters

SMALLEST_RIDGE: Final = 1e-6
"""Ridge without noise, as a share of the greatest eigenvalue."""

SOFTNESS: Final = 0.05
"""Width of the soft step by which a negative share becomes a small probability."""


class MomentsHead(nn.Module):
    """Layer from features (N, D) to logits (N, K).

    The statistics rounds learn A, which tends to a·E[x xᵀ].  They also learn C and n, which tend to
    b·E[y xᵀ] and b·E[y].  Here x are the scaled features, and y is one at the class of an example.
    The loss of an example has the gradient (-a x xᵀ, -b y xᵀ, -b y), with a² + 2b² = 1.

    The head is the ridge regression of y on x.  Its outputs are shares of the classes that sum to
    1.  The logits are their logarithms.

    Attributes:
        moments: A, a linear layer from features to features, zero at first.
        classes: C and n, a linear layer from features to classes, zero at first.
        head: A layer whose output is added to the logits, zero at first.
        needs_labels: Whether the statistics loss takes labels.
    """

    needs_labels = True

    def __init__(
        self, features: int, classes: int, *, norm: float, share: float, ridge: float
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.moments = nn.Linear(features, features, bias=False)
            self.classes = nn.Linear(features, classes)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        mark_statistics_parameters(self.moments)
        mark_statistics_parameters(self.classes)
        self.head = linear_head(features, classes)
        self._norm, self._ridge = norm, ridge
        self._a, self._b = math.sqrt(share), math.sqrt((1 - share) / 2)
        self._made: tuple[Tensor, Tensor, Tensor | None] | None = None

    def statistics_loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return a loss for each input and label, shape (N,).

        The norm of its gradient is at most 1 for each of them.
        """
        x = self._scaled(inputs)
        second: Tensor = (self.moments(x) * x).sum(1)
        own: Tensor = self.classes(x).gather(1, labels.view(-1, 1))
        return second * -self._a - own[:, 0] * self._b

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits.

        While there are no moments, they are those of the added layer.
        """
        added: Tensor = self.head(inputs)
        weights = self._weights()
        if weights is None:
            return added
        with torch.no_grad():
            rows = self._scaled(inputs)
            shares = rows @ weights[:, :-1].T.to(rows) + weights[:, -1].to(rows)
            logits = functional.softplus(shares / SOFTNESS).clamp(min=1e-30).log()
        return logits + added

    def _scaled(self, inputs: Tensor) -> Tensor:
        """Return features of norm at most 1."""
        length: Tensor = inputs.norm(dim=1, keepdim=True).clamp(min=self._norm)
        return inputs / length

    def _weights(self) -> Tensor | None:
        """Return the weights and offsets of the regression, (K, D + 1), or None without moments.

        They are computed again only when the moments have changed.
        """
        second = self.moments.weight.detach()
        first = torch.cat([self.classes.weight.detach(), self.classes.bias.detach()[:, None]], 1)
        if self._made is not None and (
            # A traced program uses the current weights, because the moments no longer change.
            torch.compiler.is_compiling()
            or (torch.equal(self._made[0], second) and torch.equal(self._made[1], first))
        ):
            return self._made[2]
        weights = _regression(second.double() / self._a, first.double() / self._b, self._ridge)
        self._made = second.clone(), first, weights
        return weights


def _regression(second: Tensor, first: Tensor, ridge: float) -> Tensor | None:
    """Return weights and offsets (K, D + 1) by the moments of features and classes.

    Negative eigenvalues and numbers of examples come from noise, and count as zero.

    Args:
        second: E[x xᵀ] with noise of equal deviation σ on each value, (D, D).
        first: E[y xᵀ] and E[y], (K, D + 1), with noise.
        ridge: Factor of √(2D)·σ, the expected spectral norm of the noise of the symmetric part.
    """
    features = len(second)
    symmetric = (second + second.T) / 2
    if not symmetric.trace() > 0:
        return None
    # Each of the D(D - 1)/2 differences across the diagonal has the deviation √2·σ.
    pairs = max(1, features * (features - 1))
    deviation = math.sqrt(float((second - second.T).square().sum()) / 2 / pairs)
    variances, turns = torch.linalg.eigh(symmetric)
    floor = ridge * math.sqrt(2 * features) * deviation + SMALLEST_RIDGE * float(variances[-1])
    shares = first[:, -1].clamp(min=0)
    if not shares.sum() > 0:
        return None
    shares = shares / shares.sum()
    mean = first[:, :-1].sum(0)
    deviating = first[:, :-1] - shares[:, None] * mean
    weights = ((deviating @ turns) / (variances.clamp(min=0) + floor)) @ turns.T
    offsets = shares - weights @ mean
    return torch.cat([weights, offsets[:, None]], dim=1)
