"""Known layers in a mapped pass.

They are called once for all rows, with gradients by row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen

from cohortium.clipping.pass_checks import UntrackedGradientError, is_vmap_row

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from cohortium.clipping.registry import Layer

_VIEWS = frozenset({"ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0"})
"""Nodes that change only a tensor's shape."""


@frozen
class VectorizedCall:
    """Call of a layer for all rows at once.

    The layer's class keeps the rows of a batch apart.

    Attributes:
        layer: The layer.  While it is called, its parameters are detached.
        call: Its own forward pass.
        enter: Callback of the backward pass.  It receives all rows of the input (N, …), the
            gradient of all rows of the output (N, …), and tensors that torch saved of the call.
            The rows have the form that the layer's rule takes.
        is_last: Whether the current backward pass is that of the losses.
    """

    layer: Layer
    call: Callable[[Tensor], Tensor]
    enter: Callable[[Tensor, Tensor, tuple[Tensor, ...]], None]
    is_last: Callable[[], bool]

    def for_row(self, x: Tensor) -> Tensor:
        """Return the output for one row of a mapped call.

        It is computed for all rows at once.
        """
        output: Tensor = AllRows.apply(x, self)  # type: ignore[no-untyped-call]
        return output

    def for_rows(self, x: Tensor) -> Tensor:
        """Return the output (N, …) for rows (N, …).

        A hook reports its gradient.
        """
        rows = self.layer.fold(x)
        output = self._asked(rows, self.call(rows))
        return output if rows.ndim == x.ndim else output.view(len(x), -1, *output.shape[1:])

    def _asked(self, x: Tensor, output: Tensor) -> Tensor:
        held, version = [x.detach()], x._version  # noqa: SLF001
        saved: tuple[Tensor, ...] = ()

        def on_gradient(gradient: Tensor) -> None:
            if not self.is_last():
                if torch.is_grad_enabled():  # because it would lack the layer's own weight
                    raise UntrackedGradientError("a gradient is taken of a gradient")
                return
            x = held.pop()  # because the hook itself outlives the backward pass
            if x._version != version:  # noqa: SLF001
                kind = type(self.layer.module).__name__
                raise UntrackedGradientError(f"the input of a layer {kind} was altered in place")
            self.enter(x, gradient, saved)

        if not output.requires_grad:
            output = output.clone() if output is x or output._is_view() else output  # noqa: SLF001
            anchored: Tensor = _BackwardHook.apply(
                output, torch.empty(0, requires_grad=True), on_gradient
            )  # type: ignore[no-untyped-call]
            return anchored
        node, place = _producing_node(output)
        saved = self.layer.reused_tensors(node)
        # The hook is on the node: a hook on the tensor would miss a later change in place.
        # It keeps the shape alone: with the output, it would keep the node and so itself.
        shape = output.shape
        node.register_prehook(lambda gradients: on_gradient(gradients[place].view(shape)))
        return output


def _producing_node(output: Tensor) -> tuple[Any, int]:
    """Return a tensor's node of autograd, and the index of its output.

    The node computed the tensor's numbers.
    """
    node, place = output.grad_fn, output.output_nr
    while node is not None and type(node).__name__ in _VIEWS:
        node, place = node.next_functions[0]
    return node, place


class AllRows(torch.autograd.Function):
    """Call of a known layer outside the mapping."""

    @staticmethod
    def forward(x: Tensor, known: VectorizedCall) -> Tensor:  # noqa: ARG004
        """Refuse a call outside the mapping."""
        raise UntrackedGradientError("a layer is called without a row")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep nothing, because `vmap` calls the layer itself."""

    @staticmethod
    def vmap(
        info: Any,  # noqa: ARG004
        in_dims: tuple[int | None, None],
        x: Tensor,
        known: VectorizedCall,
    ) -> tuple[Tensor, int]:
        """Call the layer outside the mapping, for all rows.

        `in_dims` says along which axis of `x` the rows lie.
        """
        axis = in_dims[0]
        if axis is None or is_vmap_row(x):
            raise UntrackedGradientError("a layer is called within another mapping")
        return known.for_rows(x.movedim(axis, 0)), 0


class _BackwardHook(torch.autograd.Function):
    """Identity function whose output autograd follows, even if not its input."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, start: Tensor, enter: Any) -> Tensor:  # noqa: ARG004
        ctx.mark_dirty(output)
        ctx.enter = enter
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        ctx.enter(gradients[0])
        return None, None, None
