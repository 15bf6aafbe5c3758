"""A layer's output gradient by row, taken while the network's pass is mapped over rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from cohortium.pass_checks import UnaccountedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_VIEWS = frozenset({"ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0"})
"""Nodes that change a tensor's shape alone."""


def is_row(value: Any) -> bool:
    """Whether a value is one row of a mapped call."""
    is_mapped = torch._C._functorch.is_batchedtensor  # noqa: SLF001
    return type(value) is torch.Tensor and is_mapped(value)


def tap(
    x: Tensor, output: Tensor, kind: str,
    saved_by: Callable[[Any], tuple[Tensor, ...]],
    enter: Callable[[Tensor, Tensor, tuple[Tensor, ...]], None],
) -> Tensor:  # fmt: skip
    """Return a layer's output as it is, and ask for its gradient.

    Args:
        x: The layer's input, one row of a mapped call.
        output: Its output, another.
        kind: Its class, for errors.
        saved_by: Gives tensors that torch saved at the node of autograd that made the output.
        enter: Told in the backward pass of all rows of `x` (N, …), of the gradient of all rows of
            the output (N, …), and of those tensors.
    """

    def ask(x: Tensor, output: Tensor, axis: int) -> Tensor:
        """Outside the mapping: rows of `x` come first, those of `output` along `axis`."""
        held, version, shape = [x.detach()], x._version, output.shape  # noqa: SLF001
        saved: tuple[Tensor, ...] = ()

        def told(gradient: Tensor) -> None:
            x = held.pop()  # the hook itself outlives the backward pass
            if x._version != version:  # noqa: SLF001
                raise UnaccountedError(f"the input of a layer {kind} was altered in place")
            enter(x, gradient.reshape(shape).movedim(axis, 0), saved)

        if not output.requires_grad:
            return _anchored(output.clone() if output is x else output, told)
        node, place = _source(output)
        saved = saved_by(node)
        # Of the node that computed it: a hook on the tensor would miss a later change in place.
        node.register_prehook(lambda gradients: told(gradients[place]))
        return output

    tapped: Tensor = _Tap.apply(x, output, ask)  # type: ignore[no-untyped-call]
    return tapped


def _source(output: Tensor) -> tuple[Any, int]:
    """The node of autograd that computed a tensor's numbers, and which of its outputs they are."""
    node, place = output.grad_fn, output.output_nr
    while node is not None and type(node).__name__ in _VIEWS:
        node, place = node.next_functions[0]
    return node, place


def _anchored(output: Tensor, enter: Callable[[Tensor], None]) -> Tensor:
    """A tensor as it is, except that autograd follows it and tells `enter` of its gradient."""
    start = torch.empty(0, requires_grad=True)
    base = output._base  # noqa: SLF001
    if base is None or base.numel() != output.numel() or not output.is_contiguous():
        anchored: Tensor = _Anchor.apply(output, start, enter)  # type: ignore[no-untyped-call]
        return anchored
    # Of the whole: autograd would copy the gradient of a view.
    whole: Tensor = _Anchor.apply(base, start, enter)  # type: ignore[no-untyped-call]
    return whole.view(output.shape)


class _Tap(torch.autograd.Function):
    """A layer's output as it is; its rows and those of the input become known on the way."""

    @staticmethod
    def forward(x: Tensor, output: Tensor, ask: Any) -> Tensor:  # noqa: ARG004
        raise UnaccountedError("a layer's output does not depend on its input")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Nothing is kept: `vmap` returns the output itself."""

    @staticmethod
    def vmap(
        info: Any,  # noqa: ARG004
        in_dims: tuple[int | None, ...],
        x: Tensor,
        output: Tensor,
        ask: Any,
    ) -> tuple[Tensor, int]:
        """Both with the rows first, outside the mapping."""
        rows, along, _ = in_dims
        if rows is None or along is None or is_row(x):
            raise UnaccountedError("a layer is called within another mapping")
        return ask(x.movedim(rows, 0), output, along), along


class _Anchor(torch.autograd.Function):
    """Nothing, except that autograd follows its output even where it would not the input's."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, start: Tensor, enter: Any) -> Tensor:  # noqa: ARG004
        ctx.mark_dirty(output)
        ctx.enter = enter
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        ctx.enter(gradients[0])
        return None, None, None
