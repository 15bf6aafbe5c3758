"""A layer's call, after its backward pass: what per-example gradients are formed from.

Shapes: B examples of K copies each, N = B·K rows; D inputs, E outputs, T positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
from attrs import evolve, frozen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

HOLD = 2
"""Per-example gradients are held if they take no more than so many times the room of the layer's
input and output gradient, which need not be kept then; and the layer's gradient is never taken
a second time."""

ROUNDING = 2.0**-15
"""Part of an example's products that its norm is never taken to be below.

A weighted sum in single precision errs by some 2⁻²² of them, however nearly they add up to zero.
"""

SLICE = 1 << 19
"""Numbers of a temporary array: few enough to stay in a core's cache."""


@frozen
class LayerCall:
    """One call of a layer in a batch, after its backward pass.

    Attributes:
        layer: The layer; its parameters are its own again.
        x: What went in, shape (N, …).
        g: Gradient of the sum of all losses by what came out, shape (N, …).
        examples: B.
        saved: What `reused_tensors` found.
    """

    layer: Any
    x: Tensor
    g: Tensor
    examples: int
    saved: tuple[Tensor, ...] = ()

    @staticmethod
    def reused_tensors(node: Any) -> tuple[Tensor, ...]:  # noqa: ARG004
        """What torch saved of the call, at its `node`, and `grad_sample` would compute anew."""
        return ()

    @staticmethod
    def fold(layer: Any, rows: Tensor) -> Tensor:  # noqa: ARG004
        """The rows (M, …) of a layer's own batch, of rows (N, …) that each may be a batch.

        Rows of one example stay together.  Most layers take any number of dimensions.
        """
        return rows

    @property
    def copies(self) -> int:
        """K, copies of an example."""
        return len(self.g) // self.examples

    def grad_sample(self, name: str) -> Tensor:
        """Per-example gradients of the parameter `name`, shape (B, …)."""
        raise NotImplementedError(name)

    @property
    def is_small(self) -> bool:
        """Whether per-example gradients of the weight are held, as `HOLD` says."""
        room: int = (self.x.numel() + self.g.numel()) // self.examples
        size: int = self.layer.weight.numel()
        return size <= HOLD * room

    def squared_norms(self, name: str) -> Tensor | None:  # noqa: ARG002
        """Return the squared norms (B,), or None where `grad_sample` is the better way to them."""
        return None

    def rounding(self, terms: int) -> Tensor:
        """The least square of an example's norm, shape (B,), that rounding cannot exceed.

        Args:
            terms: In how many products each number of the input stands.
        """
        square = self._norms(self.g).square() * ROUNDING**2 * terms
        return square * self._norms(self.x).square() if self.x.is_floating_point() else square

    def _norms(self, rows: Tensor) -> Tensor:
        each = rows.reshape(self.examples, -1)
        norms: Tensor = torch.linalg.vector_norm(each, dim=1, dtype=torch.float64)
        return norms

    def weighted_sum(self, name: str, factors: Tensor) -> Tensor:
        """Return the sum with `factors` (B,); asked for only where `squared_norms` are given."""
        raise NotImplementedError(name)

    def select(self, examples: slice) -> Self:
        """The same of some examples alone."""
        rows = slice(examples.start * self.copies, examples.stop * self.copies)
        x, g = self.x[rows], self.g[rows]
        return evolve(self, x=x, g=g, examples=len(g) // self.copies)

    def sum_per_example(self, rows: Tensor) -> Tensor:
        """The sum over copies and positions, shape (B, E), of (N, …, E)."""
        rows = rows.reshape(self.examples, -1, rows.shape[-1])
        return rows.sum(1) if rows.shape[1] > 1 else rows.squeeze(1)

    def scale_by_example(self, factors: Tensor) -> Tensor:
        """The output gradient with each example's factor, shape (N, …)."""
        each = factors.to(self.g.dtype).repeat_interleave(self.copies)
        return self.g * each.view(-1, *[1] * (self.g.ndim - 1))

    def slices(self, numbers: int) -> Iterator[slice]:
        """Examples of which each takes so many `numbers`, some at a time."""
        step = max(1, SLICE // max(1, numbers))
        for start in range(0, self.examples, step):
            yield slice(start, start + step)


def gram_matrix(rows: Tensor) -> Tensor:
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
