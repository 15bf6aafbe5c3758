"""Per-example gradients of normalisations and embeddings.

The shapes are those of `layer_call`.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve, frozen
from torch.nn import functional

from cohortium.clipping.layer_call import LayerCall, gram_matrix

if TYPE_CHECKING:
    from torch import Tensor


@frozen
class GroupNormCall(LayerCall):
    """Call of `nn.GroupNorm`."""

    @staticmethod
    def fold(layer: Any, rows: Tensor) -> Tensor:  # noqa: ARG004
        """Return the rows as one batch.

        Each row is a batch (N, T, C, …).
        """
        return rows.flatten(0, 1)

    @staticmethod
    def reused_tensors(node: Any) -> tuple[Tensor, ...]:
        """Return mean and inverse deviation of each group, shapes (N, groups)."""
        if type(node).__name__ != "NativeGroupNormBackward0":
            return ()
        return node._saved_result1.detach(), node._saved_result2.detach()  # noqa: SLF001

    def grad_sample(self, name: str) -> Tensor:
        """Return gradients by torch's own backward pass.

        The pass takes the channels of all examples as the channels of one example.
        """
        return self._both[0 if name == "weight" else 1]

    @cached_property
    def _both(self) -> tuple[Tensor, Tensor]:
        layer, n, c = self.layer, len(self.x), self.x.shape[1]
        x, g = self.x.contiguous(), self.g.contiguous()
        t, groups = x[0, 0].numel(), layer.num_groups
        if self.saved and self.saved[0].dtype == x.dtype:
            mean, inverse = self.saved
        else:
            _, mean, inverse = torch.native_group_norm(x, None, None, n, c, t, groups, layer.eps)
        ones = torch.ones(n * c, dtype=x.dtype, device=x.device)
        _, weight, bias = torch.ops.aten.native_group_norm_backward(
            g.view(1, n * c, t), x.view(1, n * c, t), mean.view(1, -1), inverse.view(1, -1),
            ones, 1, n * c, t, n * groups, [False, True, True],
        )  # fmt: skip
        return self.sum_per_example(weight.view(n, c)), self.sum_per_example(bias.view(n, c))


@frozen
class LayerNormCall(LayerCall):
    """Call of `nn.LayerNorm`."""

    def grad_sample(self, name: str) -> Tensor:
        """Return sums over positions of g·x̂ and of g."""
        shape = self.layer.normalized_shape
        g = self.g
        if name == "weight":
            g = g * functional.layer_norm(self.x, shape, eps=self.layer.eps)
        return g.reshape(self.examples, -1, *shape).sum(1)


@frozen
class EmbeddingCall(LayerCall):
    """Call of `nn.Embedding`."""

    def grad_sample(self, name: str) -> Tensor:  # noqa: ARG002
        """Return a table for each example.  Most entries are zero."""
        x, g = self._flat()
        table = g.new_zeros(self.examples, *self.layer.weight.shape)
        return table.scatter_add_(1, x.unsqueeze(2).expand_as(g), g)

    def squared_norms(self, name: str) -> Tensor | None:  # noqa: ARG002
        """Return Σ_tu ⟨g_t, g_u⟩ over some pairs of positions.

        These are the positions t and u that look up the same entry.
        """
        if self.is_small:
            return None
        x, g = self._flat()
        pieces = [
            gram_matrix(g[s]).mul_(x[s].unsqueeze(1) == x[s].unsqueeze(2)).sum((1, 2))
            for s in self.slices(x.shape[1] ** 2)
        ]
        return torch.cat(pieces).clamp(min=0).add_(self.rounding(x.shape[1]))

    def weighted_sum(self, name: str, factors: Tensor) -> Tensor:  # noqa: ARG002
        """Return one table for all examples."""
        x, g = evolve(self, g=self.scale_by_example(factors))._flat()  # noqa: SLF001
        return torch.zeros_like(self.layer.weight).index_add_(0, x.flatten(), g.flatten(0, 1))

    def _flat(self) -> tuple[Tensor, Tensor]:
        x = self.x.reshape(self.examples, -1)  # (B, T)
        g = self.g.reshape(self.examples, -1, self.g.shape[-1])  # (B, T, E)
        if self.layer.padding_idx is not None:
            g = g.masked_fill((x == self.layer.padding_idx).unsqueeze(2), 0.0)
        return x, g
