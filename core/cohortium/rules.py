"""Per-example gradients of one layer, from what went in and the gradient of what came out.

Sources: Goodfellow 2015 (arXiv 1510.01799) for the norms of a linear layer without its gradients;
Rochette et al. 2019 (arXiv 1912.06015) for per-example gradients of a convolution as one grouped
convolution; Li et al. 2022 (arXiv 2110.05679, section 4) and Bu et al. 2022 (arXiv 2205.10683)
for the products of Gram matrices, the "ghost" norm.

Shapes: B examples of K copies each, N = B·K rows; D inputs, E outputs, T positions.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve, frozen
from torch import nn
from torch.nn import functional

from cohortium.patches import convolution_gradient, patch_grams

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

HOLD = 2
"""Per-example gradients are held if they take no more than so many times the room of the layer's
input and output gradient, which need not be kept then; and the layer's gradient is never taken
a second time."""

SLICE = 1 << 19
"""Numbers of a temporary array: few enough to stay in a core's cache."""


@frozen
class Use:
    """One call of a layer in a batch, after its backward pass.

    Attributes:
        layer: The layer; its parameters are its own again.
        x: What went in, shape (N, …).
        g: Gradient of the sum of all losses by what came out, shape (N, …).
        examples: B.
        saved: What `saved_by` found.
    """

    layer: Any
    x: Tensor
    g: Tensor
    examples: int
    saved: tuple[Tensor, ...] = ()

    @staticmethod
    def saved_by(output: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG004
        """What torch saved of the call for its own backward pass and `rows` would compute anew."""
        return ()

    @property
    def copies(self) -> int:
        """K, copies of an example."""
        return len(self.g) // self.examples

    def rows(self, name: str) -> Tensor:
        """Per-example gradients of the parameter `name`, shape (B, …)."""
        raise NotImplementedError(name)

    def squares(self, name: str) -> Tensor | None:  # noqa: ARG002
        """Squared norms of `rows`, shape (B,), or None where `rows` is the better way to them."""
        return None

    def weighted(self, name: str, factors: Tensor) -> Tensor:
        """The sum of `rows` with `factors` (B,); asked for only where `squares` gave them."""
        raise NotImplementedError(name)

    def by_example(self, rows: Tensor) -> Tensor:
        """The sum over copies and positions, shape (B, E), of (N, …, E)."""
        rows = rows.reshape(self.examples, -1, rows.shape[-1])
        return rows.sum(1) if rows.shape[1] > 1 else rows.squeeze(1)

    def weigh(self, factors: Tensor) -> Tensor:
        """The output gradient with each example's factor, shape (N, …)."""
        each = factors.to(self.g.dtype).repeat_interleave(self.copies)
        return self.g * each.view(-1, *[1] * (self.g.ndim - 1))

    def slices(self, numbers: int) -> Iterator[slice]:
        """Examples of which each takes so many `numbers`, some at a time."""
        step = max(1, SLICE // max(1, numbers))
        for start in range(0, self.examples, step):
            yield slice(start, start + step)


@frozen
class LinearUse(Use):
    """Of `nn.Linear`, with any number of dimensions between batch and features."""

    def rows(self, name: str) -> Tensor:
        """Sums over T positions of outer products."""
        if name == "bias":
            return self.by_example(self.g)
        x, g = self._flat()
        return torch.bmm(g.transpose(1, 2), x)  # (B, E, D)

    def squares(self, name: str) -> Tensor | None:
        """‖Σ_t g_t x_tᵀ‖² = Σ_tu ⟨g_t, g_u⟩⟨x_t, x_u⟩."""
        x, g = self._flat()
        if name == "bias" or self.layer.weight.numel() <= HOLD * (x[0].numel() + g[0].numel()):
            return None
        pieces = [_gram(x[s]).mul_(_gram(g[s])).sum((1, 2)) for s in self.slices(x.shape[1] ** 2)]
        return torch.cat(pieces)

    def weighted(self, name: str, factors: Tensor) -> Tensor:  # noqa: ARG002
        """One matrix product."""
        return self.weigh(factors).flatten(0, -2).T @ self.x.flatten(0, -2)

    def _flat(self) -> tuple[Tensor, Tensor]:
        x = self.x.reshape(self.examples, -1, self.x.shape[-1])  # (B, T, D)
        return x, self.g.reshape(self.examples, -1, self.g.shape[-1])  # (B, T, E)


@frozen
class ConvolutionUse(Use):
    """Of `nn.Conv1d`, `nn.Conv2d` and `nn.Conv3d`, with any stride, padding, dilation, groups."""

    def rows(self, name: str) -> Tensor:
        """Weight gradients, each of one example's copies; of the bias, sums."""
        if name == "bias":
            return self.by_example(self.g.flatten(2).transpose(1, 2))
        return convolution_gradient(self.layer, self.x, self.g, self.examples)

    def squares(self, name: str) -> Tensor | None:
        """Gram matrices where the map is small, else gradients that are thrown away at once."""
        size = self.layer.weight.numel()
        room = (self.x.numel() + self.g.numel()) // self.examples
        if name == "bias" or size <= HOLD * room:
            return None
        positions = self.copies * self.g[0, 0].numel()  # K·T
        if self._gram_work(positions) < positions * size:
            each = positions * self.copies * self.x[0, 0].numel()
            pieces = [self._squares_by_gram(s) for s in self.slices(each)]
        else:
            pieces = [squared_norms(self._part(s).rows(name)) for s in self.slices(size)]
        return torch.cat(pieces)

    def weighted(self, name: str, factors: Tensor) -> Tensor:  # noqa: ARG002
        """One weight gradient of the whole batch."""
        return convolution_gradient(self.layer, self.x, self.weigh(factors), 1)[0]

    def _gram_work(self, positions: int) -> float:
        """Multiplications of the Gram way for one example, doubled: it is done in `float64`."""
        layer = self.layer
        if layer.groups != 1 or self.x.ndim > 4:  # noqa: PLR2004
            return float("inf")
        phases = 1
        for stride, size in zip(layer.stride, layer.kernel_size, strict=True):
            phases *= min(stride, size)
        channels: int = layer.in_channels * phases + layer.out_channels
        taps: int = layer.weight[0, 0].numel()
        return 2.0 * positions**2 * (channels + taps)

    def _squares_by_gram(self, part: slice) -> Tensor:
        use = self._part(part)
        g = use.g.view(use.examples, self.copies, use.g.shape[1], -1)  # (b, K, E, T)
        patches = patch_grams(self.layer, use.x, use.g.shape[2:], use.examples)  # (b, KT, KT)
        return patches.mul_(_gram(g.transpose(2, 3).flatten(1, 2))).sum((1, 2))

    def _part(self, part: slice) -> ConvolutionUse:
        """The same of some examples alone."""
        k = self.copies
        g = self.g[part.start * k : part.stop * k]
        return ConvolutionUse(self.layer, self.x[part.start * k : part.stop * k], g, len(g) // k)


@frozen
class GroupNormUse(Use):
    """Of `nn.GroupNorm`."""

    @staticmethod
    def saved_by(output: Tensor) -> tuple[Tensor, ...]:
        """Mean and inverse deviation of each group, shapes (N, groups)."""
        function: Any = output.grad_fn
        if type(function).__name__ != "NativeGroupNormBackward0":
            return ()
        return function._saved_result1.detach(), function._saved_result2.detach()  # noqa: SLF001

    def rows(self, name: str) -> Tensor:
        """Torch's own backward pass, told that each example's channels are channels of one."""
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
        return self.by_example(weight.view(n, c)), self.by_example(bias.view(n, c))


@frozen
class LayerNormUse(Use):
    """Of `nn.LayerNorm`."""

    def rows(self, name: str) -> Tensor:
        """Sums over positions of g·x̂ and of g."""
        shape = self.layer.normalized_shape
        g = self.g
        if name == "weight":
            g = g * functional.layer_norm(self.x, shape, eps=self.layer.eps)
        return g.reshape(self.examples, -1, *shape).sum(1)


@frozen
class EmbeddingUse(Use):
    """Of `nn.Embedding`."""

    def rows(self, name: str) -> Tensor:  # noqa: ARG002
        """A table for each example, of which most is zero."""
        x, g = self._flat()
        table = g.new_zeros(self.examples, *self.layer.weight.shape)
        return table.scatter_add_(1, x.unsqueeze(2).expand_as(g), g)

    def squares(self, name: str) -> Tensor | None:  # noqa: ARG002
        """Σ_tu ⟨g_t, g_u⟩ over positions t and u that look up the same entry."""
        x, g = self._flat()
        if self.layer.weight.numel() <= HOLD * g[0].numel():
            return None
        pieces = [
            _gram(g[s]).mul_(x[s].unsqueeze(1) == x[s].unsqueeze(2)).sum((1, 2))
            for s in self.slices(x.shape[1] ** 2)
        ]
        return torch.cat(pieces)

    def weighted(self, name: str, factors: Tensor) -> Tensor:  # noqa: ARG002
        """One table for all examples."""
        x, g = evolve(self, g=self.weigh(factors))._flat()  # noqa: SLF001
        return torch.zeros_like(self.layer.weight).index_add_(0, x.flatten(), g.flatten(0, 1))

    def _flat(self) -> tuple[Tensor, Tensor]:
        x = self.x.reshape(self.examples, -1)  # (B, T)
        g = self.g.reshape(self.examples, -1, self.g.shape[-1])  # (B, T, E)
        if self.layer.padding_idx is not None:
            g = g.masked_fill((x == self.layer.padding_idx).unsqueeze(2), 0.0)
        return x, g


@frozen
class TracedUse(Use):
    """Of any layer: its own backward pass for each example, by `torch.func`.

    Of a layer that holds others, the gradients are those of its own parameters.
    """

    def rows(self, name: str) -> Tensor:
        """Gradients of ⟨output, g⟩, mapped over rows.

        Raises:
            RuntimeError: The layer cannot be mapped over: it draws random numbers, say.
        """
        return self._all[name]

    @cached_property
    def _all(self) -> dict[str, Tensor]:
        own = {n: p.detach() for n, p in owned(self.layer) if p.requires_grad}

        def product(parameters: dict[str, Tensor], x: Tensor, g: Tensor) -> Tensor:
            output = torch.func.functional_call(self.layer, parameters, (x.unsqueeze(0),))
            total: Tensor = (output * g.unsqueeze(0)).sum()
            return total

        sample = torch.func.vmap(torch.func.grad(product), in_dims=(None, 0, 0))
        rows: dict[str, Tensor] = sample(own, self.x, self.g)
        return {n: r.view(self.examples, -1, *r.shape[1:]).sum(1) for n, r in rows.items()}


def owned(layer: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that a layer itself uses: its own, and what its own are computed from."""
    own = [(n, p) for n, p in layer._parameters.items() if p is not None]  # noqa: SLF001
    if nn.utils.parametrize.is_parametrized(layer):
        parts = layer.parametrizations.named_parameters(prefix="parametrizations")  # type: ignore[union-attr]
        own += parts
    return own


def _gram(rows: Tensor) -> Tensor:
    """Products of all pairs of (B, T, D), shape (B, T, T), in double precision.

    The ghost norm cancels: in `float32` it may come out too small by any factor, where the
    output gradients of an example nearly add up to zero, and then a clip would not hold.
    """
    wide = rows.double()
    return torch.bmm(wide, wide.transpose(1, 2))


def squared_norms(rows: Tensor) -> Tensor:
    """‖row‖² of rows (B, …), shape (B,), `float64`; in blocks, which is as exact as it is fast."""
    blocks = rows.reshape(len(rows), rows.shape[1] if rows.ndim > 1 else 1, -1)
    squares: Tensor = torch.linalg.vector_norm(blocks, dim=2).double().square().sum(1)
    return squares
