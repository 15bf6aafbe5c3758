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
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from attrs import Factory, define, evolve, frozen
from torch.nn.utils.parametrize import cached

from cohortium.errors import PrivacyError
from cohortium.layers import Layer, using_parameters
from cohortium.uses import Use, squared_norms

if TYPE_CHECKING:
    from types import TracebackType

    from torch import Tensor, nn


class UnaccountedError(Exception):
    """A parameter whose per-example gradients cannot be told from its layer's calls."""


SMALL = 1 << 12
"""Numbers of a parameter up to which its gradients are put beside those of others."""


class Share(Protocol):
    """What examples contribute to some parameters."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those."""

    @property
    def squares(self) -> Tensor:
        """‖gradient‖² by example, shape (B,), `float64`."""

    def totals(self, factors: Tensor, bad: Tensor | None) -> list[Tensor]:
        """The weighted sums, without the examples that are `bad`, (B,)."""


@frozen
class Held:
    """Per-example gradients of parameters, side by side, (B, P)."""

    parameters: list[nn.Parameter]
    rows: Tensor
    squares: Tensor

    def totals(self, factors: Tensor, bad: Tensor | None) -> list[Tensor]:
        """One product, taken apart."""
        rows = self.rows if bad is None else self.rows.masked_fill(bad.unsqueeze(1), 0.0)
        total = factors.to(rows.dtype) @ rows
        parts = torch.split(total, [p.numel() for p in self.parameters])
        return [part.view_as(p).to(p.dtype) for p, part in zip(self.parameters, parts, strict=True)]


@frozen
class Called:
    """A layer's call, from which the weighted sum of one parameter is formed."""

    parameters: list[nn.Parameter]
    name: str
    use: Use
    squares: Tensor

    def totals(self, factors: Tensor, bad: Tensor | None) -> list[Tensor]:
        """By the layer's rule."""
        use: Any = self.use if bad is None else _without(self.use, bad)
        return [use.weighted(self.name, factors)]


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
        shares: Contributions that are settled.
        open: Per-example gradients, (B, …), of small parameters and of those used several times.
        floats: Numbers kept.
    """

    examples: int
    calls: dict[int, int] = Factory(dict)
    shares: list[Share] = Factory(list)
    open: dict[int, tuple[nn.Parameter, Tensor]] = Factory(dict)
    floats: int = 0

    def add(self, parameter: nn.Parameter, name: str, use: Use) -> bool:
        """Enter what one call contributes to one parameter; whether the call itself is kept."""
        once = self.calls[id(parameter)] == 1
        squares = use.squares(name) if once else None
        if squares is not None:
            self.shares.append(Called([parameter], name, use, squares))
            return True
        rows = use.rows(name)
        if id(parameter) in self.open:
            rows = rows + self.open[id(parameter)][1]
        else:
            self.floats += rows.numel()
        if once and parameter.numel() > SMALL:  # its norms are taken while it is in the caches
            self._hold(parameter, rows)
        else:
            self.open[id(parameter)] = (parameter, rows)
        return False

    def close(self) -> None:
        """Settle what is open: a network's many small parameters in one."""
        small = []
        for parameter, rows in self.open.values():
            if parameter.numel() > SMALL:
                self._hold(parameter, rows)
            else:
                small.append((parameter, rows.reshape(self.examples, -1)))
        self.open.clear()
        if small:
            together = torch.cat([rows for _, rows in small], 1)
            squares = together.double().square().sum(1)
            self.shares.append(Held([parameter for parameter, _ in small], together, squares))

    def _hold(self, parameter: nn.Parameter, rows: Tensor) -> None:
        self.shares.append(Held([parameter], rows.flatten(1), squared_norms(rows)))


class Book:
    """Hooks on a network's layers, for the time of a `with` block."""

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self._parameters = [(n, p) for n, p in net.named_parameters() if p.requires_grad]
        self._page: _Page | None = None
        self._handles: list[Any] = []
        self._calls: list[_Call] = []

    def __enter__(self) -> Self:
        self._forget_gradients()
        layers = using_parameters(self._net)
        for layer in layers:
            _require_examples_apart(layer)
        for layer in layers:
            before, after = partial(self._before, layer), partial(self._after, layer)
            self._handles += [
                layer.module.register_forward_pre_hook(before, prepend=True),
                layer.module.register_forward_hook(after, prepend=True, with_kwargs=True),
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
        self._forget_gradients()

    def open(self, examples: int) -> None:
        """Start the forward pass of a physical batch."""
        self._page = _Page(examples)

    def take(self, losses: Tensor) -> tuple[list[Share], int]:
        """Run the backward pass; what parameters get, and how many numbers that keeps.

        Raises:
            UnaccountedError: A parameter is used in a way that its layer's calls do not show.
        """
        page, self._page = self._page, None
        assert page is not None
        if losses.requires_grad:
            losses.sum().backward()  # type: ignore[no-untyped-call]
        for name, parameter in self._parameters:
            if parameter.grad is not None:
                raise UnaccountedError(f"parameter '{name}' is used outside its layer's own calls")
        with torch.no_grad():
            page.close()
        return page.shares, page.floats

    def _forget_gradients(self) -> None:
        for _, parameter in self._parameters:
            parameter.grad = None

    def _before(self, layer: Layer, _: nn.Module, args: tuple[Any, ...]) -> None:
        if self._page is None or not torch.is_grad_enabled():
            return
        call = _Call(layer, [version(a) for a in args if isinstance(a, torch.Tensor)])
        call.detach()
        self._calls.append(call)

    def _after(
        self, layer: Layer, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any],
        output: Any,
    ) -> Any:  # fmt: skip
        if self._page is None or not torch.is_grad_enabled():
            return output
        call = self._calls.pop()
        call.restore()
        if call.layer is not layer:
            raise UnaccountedError(f"a layer {type(module).__name__} was left by an error")
        if kwargs or len(args) != 1 or not all(
            isinstance(t, torch.Tensor) for t in (*args, output)
        ):  # fmt: skip
            raise UnaccountedError(f"a layer {type(module).__name__} takes or gives several things")
        page = self._page
        for _, parameter in layer.parameters:
            page.calls[id(parameter)] = page.calls.get(id(parameter), 0) + 1
        if not output.requires_grad:
            start = torch.empty(0, requires_grad=True)
            output = _Anchor.apply(output.clone() if output is args[0] else output, start)  # type: ignore[no-untyped-call]
        call.saved = layer.kind.saved_by(output)
        output.register_hook(partial(_enter, page, call, [args[0].detach()]))
        return output


def _require_examples_apart(layer: Layer) -> None:
    """Refuse options of a layer by which examples see one another."""
    name, module = layer.name, layer.module
    if getattr(module, "max_norm", None) is not None:
        raise PrivacyError(
            f"layer '{name}' rescales its weights by what the examples look up, which no noise "
            "covers; leave out its option 'max_norm'."
        )
    if getattr(module, "scale_grad_by_freq", False):
        raise UnaccountedError(f"layer '{name}' scales gradients by counts over the batch")
    if getattr(module, "batch_first", True) is False:
        raise UnaccountedError(f"layer '{name}' takes the batch as its second dimension")


def _enter(page: _Page, call: _Call, held: list[Tensor], g: Tensor) -> None:
    """Book one call of a layer, when the gradient of its output is there."""
    layer, x = call.layer, held.pop()  # the hook itself outlives the backward pass
    kind = type(layer.module).__name__
    if [version(x)] != call.versions:
        raise UnaccountedError(f"the input of a layer {kind} was altered in place")
    if len(x) != len(g) or len(g) % page.examples:
        raise UnaccountedError(f"a layer {kind} does not take the batch as its first dimension")
    dtype = layer.parameters[0][1].dtype
    with torch.no_grad(), torch.autocast(g.device.type, enabled=False), cached():
        x = x.to(dtype) if x.is_floating_point() else x
        use = layer.kind(layer.module, x, g.to(dtype), page.examples, call.saved)
        try:
            kept = [page.add(p, n, use) for n, p in layer.parameters if p.requires_grad]
        except RuntimeError as error:
            raise UnaccountedError(f"a layer {kind} resists: {error}") from error
    page.floats += any(kept) * (x.numel() + g.numel())


@define
class _Call:
    """A layer while it is called, with its parameters detached."""

    layer: Layer
    versions: list[int]
    saved: tuple[Tensor, ...] = ()
    _attached: list[tuple[nn.Module, dict[str, nn.Parameter | None]]] = Factory(list)

    def detach(self) -> None:
        for holder in self.layer.holders():
            saved = holder._parameters  # noqa: SLF001
            self._attached.append((holder, saved))
            detached: Any = {n: p if p is None else p.detach() for n, p in saved.items()}
            holder._parameters = detached  # noqa: SLF001

    def restore(self) -> None:
        while self._attached:
            holder, saved = self._attached.pop()
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
