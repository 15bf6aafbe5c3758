"""Per-example gradients of layers that multiply by a weight.

The shapes are those of `layer_call`.

Sources: Goodfellow 2015 (arXiv 1510.01799) for the norms of a linear layer without its gradients.
Rochette et al. 2019 (arXiv 1912.06015) for per-example gradients of a convolution as one grouped
convolution.  Li et al. 2022 (arXiv 2110.05679, section 4) and Bu et al. 2022 (arXiv 2205.10683)
for the products of Gram matrices, the "ghost" norm.  Dumoulin and Visin 2016 (arXiv 1603.07285,
section 4) for the transposed convolution as an adjoint.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from torch import nn
from torch.nn import functional

from cohortium.clipping.conv import AdjointConvolution, convolution_gradient, patch_grams
from cohortium.clipping.layer_call import LayerCall, gram_matrix, squared_norms

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


@frozen
class LinearCall(LayerCall):
    """Call of `nn.Linear`, with any number of dimensions between batch and features."""

    def grad_sample(self, name: str) -> Tensor:
        """Return sums over T positions of outer products."""
        if name == "bias":
            return self.sum_per_example(self.g)
        x, g = self._flat()
        return torch.bmm(g.transpose(1, 2), x)  # (B, E, D)

    def squared_norms(self, name: str) -> Tensor | None:
        """Return ‖Σ_t g_t x_tᵀ‖² = Σ_tu ⟨g_t, g_u⟩⟨x_t, x_u⟩."""
        if name == "bias" or self.is_small:
            return None
        x, g = self._flat()
        pieces = [
            gram_matrix(x[s]).mul_(gram_matrix(g[s])).sum((1, 2))
            for s in self.slices(x.shape[1] ** 2)
        ]
        return torch.cat(pieces).clamp(min=0).add_(self.rounding(1))

    def weighted_sum(self, name: str, factors: Tensor) -> Tensor:  # noqa: ARG002
        """Return one matrix product."""
        return self.scale_by_example(factors).flatten(0, -2).T @ self.x.flatten(0, -2)

    def _flat(self) -> tuple[Tensor, Tensor]:
        x = self.x.reshape(self.examples, -1, self.x.shape[-1])  # (B, T, D)
        return x, self.g.reshape(self.examples, -1, self.g.shape[-1])  # (B, T, E)


@frozen
class ConvolutionCall(LayerCall):
    """Call of `nn.Conv1d`, `nn.Conv2d` or `nn.Conv3d`.

    It may have any stride, padding, dilation and groups.
    """

    @staticmethod
    def fold(layer: Any, rows: Tensor) -> Tensor:
        """Return the rows as images.

        Each row is an image (N, D, …), or a batch of them (N, T, D, …).
        """
        return rows.flatten(0, -2 - len(layer.kernel_size))

    def grad_sample(self, name: str) -> Tensor:
        """Return weight gradients, each of one example's copies.

        The gradients of the bias are sums.
        """
        if name == "bias":
            return self.sum_per_example(self.g.flatten(2).transpose(1, 2))
        return convolution_gradient(self.layer, self.x, self.g, self.examples)

    def squared_norms(self, name: str) -> Tensor | None:
        """Return norms by Gram matrices where the map is small.

        Otherwise they come from gradients that are discarded at once.
        """
        if name == "bias" or self.is_small:
            return None
        size = self.layer.weight.numel()
        positions = self.copies * self.g[0, 0].numel()  # K·T
        if self._gram_work(positions) < positions * size:
            each = positions * self.copies * self.x[0, 0].numel()
            pieces = [self._squared_norms_by_gram(s) for s in self.slices(each)]
        else:
            pieces = [squared_norms(self.select(s).grad_sample(name)) for s in self.slices(size)]
        return torch.cat(pieces).clamp(min=0).add_(self.rounding(self.taps))

    @property
    def taps(self) -> int:
        """Positions of the kernel."""
        taps: int = self.layer.weight[0, 0].numel()
        return taps

    def weighted_sum(self, name: str, factors: Tensor) -> Tensor:  # noqa: ARG002
        """Return one weight gradient of the whole batch."""
        return convolution_gradient(self.layer, self.x, self.scale_by_example(factors), 1)[0]

    def _gram_work(self, positions: int) -> float:
        """Return the multiplications of the Gram method for one example, doubled.

        The factor of two accounts for `float64`.
        """
        layer = self.layer
        if layer.groups != 1:
            return float("inf")
        phases = 1
        for stride, size in zip(layer.stride, layer.kernel_size, strict=True):
            phases *= min(stride, size)
        channels: int = layer.in_channels * phases + layer.out_channels
        return 2.0 * positions**2 * (channels + self.taps)

    def _squared_norms_by_gram(self, part: slice) -> Tensor:
        use = self.select(part)
        g = use.g.view(use.examples, self.copies, use.g.shape[1], -1)  # (b, K, E, T)
        patches = patch_grams(self.layer, use.x, use.g.shape[2:], use.examples)  # (b, KT, KT)
        return patches.mul_(gram_matrix(g.transpose(2, 3).flatten(1, 2))).sum((1, 2))


@frozen
class TransposedConvolutionCall(LayerCall):
    """Call of `nn.ConvTranspose1d`, `nn.ConvTranspose2d` or `nn.ConvTranspose3d`.

    The layer is the adjoint of a convolution with the same weight.  So it has the weight gradients
    of that convolution's call, where input and output gradient change places.
    """

    @staticmethod
    def fold(layer: Any, rows: Tensor) -> Tensor:
        """Return the rows as images, as for a convolution."""
        return ConvolutionCall.fold(layer, rows)

    def grad_sample(self, name: str) -> Tensor:
        """Return weight gradients of the convolution.

        The gradients of the bias are sums.
        """
        if name == "bias":
            return self.sum_per_example(self.g.flatten(2).transpose(1, 2))
        return self._adjoint.grad_sample(name)

    def squared_norms(self, name: str) -> Tensor | None:
        """Return the norms of the convolution."""
        return None if name == "bias" else self._adjoint.squared_norms(name)

    def weighted_sum(self, name: str, factors: Tensor) -> Tensor:
        """Return one weight gradient of the whole batch."""
        return self._adjoint.weighted_sum(name, factors)

    @cached_property
    def _adjoint(self) -> ConvolutionCall:
        """The convolution's call: it takes the output gradient, and has the input as gradient."""
        layer = self.layer
        # Values that the layer's padding removes are zeros here, and those of its output padding
        # go: the sum over positions then has all terms of the layer's own.
        sides = [
            side
            for before, more in zip(layer.padding, layer.output_padding, strict=True)
            for side in (before - more, before)
        ]
        outer = functional.pad(self.g, sides[::-1]) if any(sides) else self.g
        return ConvolutionCall(AdjointConvolution.of(layer), outer, self.x, self.examples)


@frozen
class ParametrizedCall(LayerCall):
    """Call of a linear layer or convolution with a parametrized weight.

    The weight is computed from another one, its original.  An example is a standardised kernel
    (`torch.nn.utils.parametrize`).  The gradient by the weight is pulled back through the
    computation of the weight, by example or once for their sum.
    """

    @staticmethod
    def fold(layer: Any, rows: Tensor) -> Tensor:
        """Return rows as the layer with the computed weight takes them."""
        return _rule_for_weight(layer).fold(layer, rows)

    def grad_sample(self, name: str) -> Tensor:
        """Return weight gradients, each pulled back.

        The bias has the layer's own gradients.
        """
        if name == "bias":
            return self._inner.grad_sample(name)
        rows, pull = self._inner.grad_sample("weight"), torch.func.vmap(self._pull)
        for part in self._slices:
            rows[part] = pull(rows[part])
        return rows

    def squared_norms(self, name: str) -> Tensor | None:
        """Return None where the gradients are small.

        Otherwise the norms come from gradients that are discarded at once.
        """
        if name == "bias" or self._inner.is_small:
            return None
        pull = torch.func.vmap(self._pull)
        taps = 1 if isinstance(self.layer, nn.Linear) else self.layer.weight[0, 0].numel()
        pieces = []
        for part in self._slices:
            inner = self._inner.select(part)
            rows = inner.grad_sample("weight")
            before, after = squared_norms(rows), squared_norms(pull(rows))
            # The pullback scales the rounding errors by the same factor.
            gain = after / before.clamp(min=1e-300)
            pieces.append(after + inner.rounding(taps) * gain)
        return torch.cat(pieces)

    def weighted_sum(self, name: str, factors: Tensor) -> Tensor:  # noqa: ARG002
        """Return the weight's own sum, pulled back."""
        return self._pull(self._inner.weighted_sum("weight", factors))

    @property
    def _slices(self) -> Iterator[slice]:
        """Slices larger than caches.

        A mapping costs time even for few rows.
        """
        return self.slices(self.layer.weight.numel() // 2)

    @cached_property
    def _inner(self) -> LayerCall:
        return _rule_for_weight(self.layer)(self.layer, self.x, self.g, self.examples)

    def _pull(self, gradient: Tensor) -> Tensor:
        """Return the gradient by the original from a gradient by the weight.

        Raises:
            RuntimeError: The computation of the weight is random and mapped.  Another draw than the
                call's would give other gradients.
        """
        steps = self.layer.parametrizations.weight

        def weight(original: Tensor) -> Tensor:
            for step in steps:
                original = step(original)
            return original

        pulled: Tensor = torch.func.vjp(weight, steps.original.detach())[1](gradient)[0]
        return pulled


RULES: dict[type[nn.Module], type[LayerCall]] = {
    nn.Linear: LinearCall,
    nn.Conv1d: ConvolutionCall,
    nn.Conv2d: ConvolutionCall,
    nn.Conv3d: ConvolutionCall,
    nn.ConvTranspose1d: TransposedConvolutionCall,
    nn.ConvTranspose2d: TransposedConvolutionCall,
    nn.ConvTranspose3d: TransposedConvolutionCall,
}
"""Rules by the exact class of a layer.  A subclass may behave differently."""


def _rule_for_weight(layer: nn.Module) -> type[LayerCall]:
    return RULES[nn.utils.parametrize.type_before_parametrizations(layer)]
