"""Global Parameter Decomposition: the largest singular values of an update's matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cohortium.plugin import parameters

if TYPE_CHECKING:
    from torch import Tensor, nn


def low_rank_update(update: Tensor, net: nn.Module, *, energy: float) -> Tensor:
    """Return `update` with each matrix cut to rank K, shape (P,).

    K is the least with Σ_{i≤K} σᵢ² ≥ `energy`·Σ σᵢ² (Wu et al. 2022, FedKD).  A convolution's
    kernel is taken as a matrix (outputs, inputs·height·width).  Vectors stay as they are.
    """
    trained = parameters.trainable(net)
    parts = parameters.split(update, [*trained, *parameters.statistics(net)])
    for place, parameter in enumerate(trained):
        if parameter.ndim > 1:
            parts[place] = truncated_svd(parts[place].flatten(1), energy=energy)
    return parameters.join(parts)


def truncated_svd(matrix: Tensor, *, energy: float) -> Tensor:
    """Return `matrix` with the fewest singular values that keep `energy`.

    They keep this share of the sum of all squares.
    """
    if not torch.isfinite(matrix).all():
        return matrix  # the privatizer refuses it and names the reason
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    squares = s.square().cumsum(0)
    rank = int((squares < energy * squares[-1]).sum()) + 1
    kept: Tensor = (u[:, :rank] * s[:rank]) @ vh[:rank]
    return kept.to(matrix)
