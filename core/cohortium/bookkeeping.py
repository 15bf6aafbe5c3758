"""Clipped sums from one forward and one backward pass.

Book-keeping (Bu et al. 2023, arXiv 2210.00038, section 3): each layer's input and output gradient
are kept, or its per-example gradients where these are smaller; when the backward pass has ended
and every example's norm is known, the clipped sum is formed from what was kept.  Autograd itself
takes no parameter's gradient: while a layer is called, its parameters are detached.

Whoever uses a parameter elsewhere than in its layer's call is found out, because then autograd
does reach it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from attrs import Factory, define, evolve, frozen

from cohortium.errors import PrivacyError
from cohortium.layers import Use, kind_of, owned, squared_norms, using_parameters

if TYPE_CHECKING:
    from types import TracebackType

    from torch import Tensor, nn


class UnaccountedError(Exception):
    """A parameter whose per-example gradients cannot be told from its layer's calls."""


@frozen
class Share:
    """What examples contribute to one parameter.

    Attributes:
        squares: ‖gradient‖² by example, shape (B,), `float64`.
        rows: Per-example gradients (B, …), or
        use: the call of a layer that their weighted sum is formed from.
    """

    name: str
    squares: Tensor
    rows: Tensor | None = None
    use: Use | None = None

    def total(self, factors: Tensor, bad: Tensor | None) -> Tensor:
        """The weighted sum, without the examples that are `bad`, (B,)."""
        with torch.no_grad(), torch.autocast(factors.device.type, enabled=False):
            if self.rows is None:
                use: Any = self.use if bad is None else _without(self.use, bad)
                total: Tensor = use.weighted(self.name, factors)
                return total
            rows = self.rows.reshape(len(self.rows), -1)
            if bad is not None:
                rows = rows.masked_fill(bad.unsqueeze(1), 0.0)
            return (factors.to(rows.dtype) @ rows).view(self.rows.shape[1:])


def _without(use: Any, bad: Tensor) -> Any:
    """The same call with zeros for some examples: a factor of zero would not remove a NaN."""
    rows = bad.repeat_interleave(use.copies)
    x, g = (t.masked_fill(rows.view(-1, *[1] * (t.ndim - 1)), 0) for t in (use.x, use.g))
    return evolve(use, x=x, g=g)


@define
class _Page:
    """The book of one physical batch.

    Attributes:
        examples: B.
        calls: How often each parameter was used, by its id.
        shares: Contributions to parameters used once.
        sums: Per-example gradients of parameters used more often, so far.
        floats: Numbers kept.
    """

    examples: int
    calls: dict[int, int] = Factory(dict)
    shares: list[tuple[nn.Parameter, Share]] = Factory(list)
    sums: dict[int, tuple[nn.Parameter, Tensor]] = Factory(dict)
    floats: int = 0

    def add(self, parameter: nn.Parameter, name: str, use: Use) -> bool:
        """Enter what one call contributes to one parameter; whether the call itself is kept."""
        if self.calls[id(parameter)] > 1:
            rows = use.rows(name)
            if id(parameter) in self.sums:
                rows = rows + self.sums[id(parameter)][1]
            else:
                self.floats += rows.numel()
            self.sums[id(parameter)] = (parameter, rows)
            return False
        squares = use.squares(name)
        if squares is None:
            rows = use.rows(name)
            self.floats += rows.numel()
            self.shares.append((parameter, Share(name, squared_norms(rows), rows=rows)))
            return False
        self.shares.append((parameter, Share(name, squares, use=use)))
        return True

    def close(self) -> None:
        """Turn the sums over several uses into shares."""
        for parameter, rows in self.sums.values():
            self.shares.append((parameter, Share("", squared_norms(rows), rows=rows)))
        self.sums.clear()


class Book:
    """Hooks on a network's layers, for the time of a `with` block."""

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self._page: _Page | None = None
        self._handles: list[Any] = []
        self._calls: list[_Call] = []

    def __enter__(self) -> Self:
        self._net.zero_grad(set_to_none=True)
        layers = using_parameters(self._net)
        for name, layer in layers:
            _require_examples_apart(name, layer)
        for _, layer in layers:
            self._handles += [
                layer.register_forward_pre_hook(self._before, prepend=True, with_kwargs=True),
                layer.register_forward_hook(self._after, prepend=True, with_kwargs=True),
            ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        for handle in self._handles:
            handle.remove()
        while self._calls:
            self._calls.pop().restore()
        self._net.zero_grad(set_to_none=True)

    def open(self, examples: int) -> None:
        """Start the forward pass of a physical batch."""
        self._page = _Page(examples)

    def take(self, losses: Tensor) -> tuple[list[tuple[nn.Parameter, Share]], int]:
        """Run the backward pass; what each parameter gets, and how many numbers that keeps.

        Raises:
            UnaccountedError: A parameter is used in a way that its layer's calls do not show.
        """
        page, self._page = self._page, None
        assert page is not None
        if losses.requires_grad:
            losses.sum().backward()  # type: ignore[no-untyped-call]
        for name, parameter in self._net.named_parameters():
            if parameter.requires_grad and parameter.grad is not None:
                raise UnaccountedError(f"parameter '{name}' is used outside its layer's own calls")
        page.close()
        return page.shares, page.floats

    def _before(self, layer: nn.Module, args: tuple[Any, ...], _: dict[str, Any]) -> None:
        if self._page is None or not torch.is_grad_enabled():
            return
        call = _Call(layer, [version(a) for a in args if isinstance(a, torch.Tensor)])
        call.detach()
        self._calls.append(call)

    def _after(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        if self._page is None or not torch.is_grad_enabled():
            return output
        call = self._calls.pop()
        call.restore()
        if call.layer is not layer:
            raise UnaccountedError(f"a layer {type(layer).__name__} was left by an error")
        if kwargs or len(args) != 1 or not all(
            isinstance(t, torch.Tensor) for t in (*args, output)
        ):  # fmt: skip
            raise UnaccountedError(f"a layer {type(layer).__name__} takes or gives several things")
        page = self._page
        for _, parameter in owned(layer):
            page.calls[id(parameter)] = page.calls.get(id(parameter), 0) + 1
        if not output.requires_grad:
            start = torch.empty(0, requires_grad=True)
            output = _Anchor.apply(output.clone() if output is args[0] else output, start)  # type: ignore[no-untyped-call]
        output.register_hook(partial(_enter, page, call, [args[0].detach()]))
        return output


def _require_examples_apart(name: str, layer: nn.Module) -> None:
    """Refuse options of a layer by which examples see one another."""
    if getattr(layer, "max_norm", None) is not None:
        raise PrivacyError(
            f"layer '{name}' rescales its weights by what the examples look up, which no noise "
            "covers; leave out its option 'max_norm'."
        )
    if getattr(layer, "scale_grad_by_freq", False):
        raise UnaccountedError(f"layer '{name}' scales gradients by counts over the batch")
    if getattr(layer, "batch_first", True) is False:
        raise UnaccountedError(f"layer '{name}' takes the batch as its second dimension")


def _enter(page: _Page, call: _Call, held: list[Tensor], g: Tensor) -> None:
    """Book one call of a layer, when the gradient of its output is there."""
    layer, x = call.layer, held.pop()  # the hook itself outlives the backward pass
    kind = type(layer).__name__
    if [version(x)] != call.versions:
        raise UnaccountedError(f"the input of a layer {kind} was altered in place")
    if len(x) != len(g) or len(g) % page.examples:
        raise UnaccountedError(f"a layer {kind} does not take the batch as its first dimension")
    dtype = next(p.dtype for _, p in owned(layer))
    with torch.no_grad(), torch.autocast(g.device.type, enabled=False):
        use = kind_of(layer)(layer, x.to(dtype) if x.is_floating_point() else x, g.to(dtype),
                             page.examples)  # fmt: skip
        try:
            kept = [page.add(p, n, use) for n, p in owned(layer) if p.requires_grad]
        except RuntimeError as error:
            raise UnaccountedError(f"a layer {kind} resists: {error}") from error
    page.floats += any(kept) * (x.numel() + g.numel())


@define
class _Call:
    """A layer while it is called, with its parameters detached."""

    layer: nn.Module
    versions: list[int]
    _saved: list[tuple[nn.Module, dict[str, nn.Parameter | None]]] = Factory(list)

    def detach(self) -> None:
        holders = {name.rpartition(".")[0] for name, _ in owned(self.layer)}
        for holder in map(self.layer.get_submodule, sorted(holders)):
            saved = holder._parameters  # noqa: SLF001
            self._saved.append((holder, saved))
            detached: Any = {n: p if p is None else p.detach() for n, p in saved.items()}
            holder._parameters = detached  # noqa: SLF001

    def restore(self) -> None:
        while self._saved:
            holder, saved = self._saved.pop()
            holder._parameters = saved  # noqa: SLF001


class _Anchor(torch.autograd.Function):
    """Nothing, except that autograd follows its output even where it would not the input's."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, start: Tensor) -> Tensor:  # noqa: ARG004
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:  # noqa: ARG004
        return None, None


def version(tensor: Tensor) -> int:
    """How often a tensor was altered in place."""
    return tensor._version  # noqa: SLF001
