"""A layer's call after its backward pass, for per-example gradients.

Shapes: B examples of K copies each, N = B·K rows, D inputs, E outputs, T positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
from attrs import evolve, field, frozen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

HOLD = 2
"""Limit of the size of stored per-example gradients, as a multiple.

Per-example gradients are stored if they take at most this multiple of the memory of the layer's
input and output gradient.  The input and output gradient need not be stored then.  The layer's
gradient is never computed a second time.
"""

ROUNDING = 2.0**-15
"""Smallest norm of an example, as a part of the example's products.

A weighted sum in single precision errs by about 2⁻²² of the products, even if they nearly add up
to zero.
"""

SLICE = 1 << 19
"""Numbers of a temporary array that stays in a core's cache."""


@frozen
class LayerCall:
    """One call of a layer in a batch, after its backward pass.

    Attributes:
        layer: The layer, with its own parameters in place again.
        x: Input, shape (N, …).
        g: Gradient of the sum of all losses with respect to the output, shape (N, …).
        examples: B.
        saved: The tensors from `reused_tensors`.
    """

    layer: Any
    x: Tensor = field(repr=False)
    g: Tensor = field(repr=False)
    examples: int
    saved: tuple[Tensor, ...] = field(default=(), repr=False)

    @staticmethod
    def reused_tensors(node: Any) -> tuple[Tensor, ...]:  # noqa: ARG004
        """Return tensors that torch saved of the call at its `node`.

        Otherwise `grad_sample` would compute them again.
        """
        return ()

    @staticmethod
    def fold(layer: Any, rows: Tensor) -> Tensor:  # noqa: ARG004
        """Return the rows (M, …) of a layer's own batch.

        The given rows (N, …) may each be a batch.  Rows of one example stay together.  Most layers
        take any number of dimensions.
        """
        return rows

    @property
    def copies(self) -> int:
        """K, copies of an example."""
        return len(self.g) // self.examples

    def grad_sample(self, name: str) -> Tensor:
        """Return the per-example gradients of the parameter `name`, shape (B, …)."""
        raise NotImplementedError(name)

    @property
    def is_small(self) -> bool:
        """Whether per-example gradients of the weight are stored, by the limit `HOLD`."""
        room: int = (self.x.numel() + self.g.numel()) // self.examples
        size: int = self.layer.weight.numel()
        return size <= HOLD * room

    def squared_norms(self, name: str) -> Tensor | None:  # noqa: ARG002
        """Return the squared norms (B,), or None where `grad_sample` is faster."""
        return None

    def rounding(self, terms: int) -> Tensor:
        """Return a lower limit of an example's squared norm, shape (B,).

        Rounding errors cannot exceed it.

        Args:
            terms: Number of products in which each number of the input occurs.
        """
        square = self._squares(self.g) * ROUNDING**2 * terms
        return square * self._squares(self.x) if self.x.is_floating_point() else square

    def _squares(self, rows: Tensor) -> Tensor:
        blocks = self.copies * (rows.shape[1] if rows.ndim > 2 else 1)  # noqa: PLR2004 - (N, E)
        return squared_norms(rows.reshape(self.examples, blocks, -1))

    def weighted_sum(self, name: str, factors: Tensor) -> Tensor:
        """Return the sum with `factors` (B,).

        It is called only where `squared_norms` returns norms.
        """
        raise NotImplementedError(name)

    def select(self, examples: slice) -> Self:
        """Return the same call for some examples alone."""
        rows = slice(examples.start * self.copies, examples.stop * self.copies)
        x, g = self.x[rows], self.g[rows]
        return evolve(self, x=x, g=g, examples=len(g) // self.copies)

    def sum_per_example(self, rows: Tensor) -> Tensor:
        """Return the sum over copies and positions, shape (B, E), of (N, …, E)."""
        rows = rows.reshape(self.examples, -1, rows.shape[-1])
        return rows.sum(1) if rows.shape[1] > 1 else rows.squeeze(1)

    def scale_by_example(self, factors: Tensor) -> Tensor:
        """Return the output gradient times each example's factor, shape (N, …)."""
        each = factors.to(self.g.dtype).repeat_interleave(self.copies)
        return self.g * each.view(-1, *[1] * (self.g.ndim - 1))

    def slices(self, numbers: int) -> Iterator[slice]:
        """Yield slices of examples, where each example takes `numbers` numbers."""
        step = max(1, SLICE // max(1, numbers))
        for start in range(0, self.examples, step):
            yield slice(start, start + step)


def gram_matrix(rows: Tensor) -> Tensor:
    """Return products of all pairs of (B, T, D), shape (B, T, T).

    The products are in double precision.

    The ghost norm suffers from cancellation.  If the output gradients of an example nearly add up
    to zero, a `float32` norm may be too small by any factor.  Then the clip would not hold.
    """
    wide = rows.double()
    return torch.bmm(wide, wide.transpose(1, 2))


def squared_norms(rows: Tensor) -> Tensor:
    """Return ‖row‖² of rows (B, …), shape (B,), `float64`.

    The computation in blocks is both exact and fast.
    """
    blocks = rows.reshape(len(rows), rows.shape[1] if rows.ndim > 1 else 1, -1)
    squares: Tensor = torch.linalg.vector_norm(blocks, dim=2).double().square().sum(1)
    return squares
