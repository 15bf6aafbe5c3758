"""Clipped sums from one forward and one backward pass.

The method is book-keeping (Bu et al. 2023, arXiv 2210.00038, section 3).  It stores each layer's
input and output gradient, or the layer's per-example gradients where these are smaller.  After the
backward pass it knows every example's norm, and computes the clipped sum from the stored tensors.
Autograd itself computes no parameter's gradient.

`mapped_forward` ensures that the rows of one example contain nothing of another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from attrs import Factory, define, evolve, field, frozen
from torch.nn.utils.parametrize import cached

from cohortium.clipping.layer_call import LayerCall, squared_norms
from cohortium.clipping.mapped_forward import PerExamplePass
from cohortium.clipping.module_state import ModuleState
from cohortium.clipping.pass_checks import SharedParameterError, UntrackedGradientError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from torch import Tensor, nn

    from cohortium.clipping.registry import Layer
    from cohortium.roles.values import ExampleIndices


SMALL = 1 << 12
"""Most numbers of a small parameter.

The gradients of all small parameters are concatenated.
"""


class Contribution(Protocol):
    """Contribution of examples to some parameters."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters."""

    @property
    def squared_norms(self) -> Tensor:
        """‖gradient‖² by example, shape (B,), `float64`."""

    def weighted_sums(self, factors: Tensor, bad: Tensor | None) -> list[Tensor]:
        """Return the weighted sums, without the examples that are `bad`, (B,)."""


@frozen
class StoredGradients:
    """Per-example gradients of parameters, concatenated, (B, P)."""

    parameters: list[nn.Parameter]
    rows: Tensor = field(repr=False)
    squared_norms: Tensor = field(repr=False)

    def weighted_sums(self, factors: Tensor, bad: Tensor | None) -> list[Tensor]:
        """Return one product, split by parameter."""
        rows = self.rows if bad is None else self.rows.masked_fill(bad.unsqueeze(1), 0.0)
        total = factors.to(rows.dtype) @ rows
        parts = torch.split(total, [p.numel() for p in self.parameters])
        return [part.view_as(p).to(p.dtype) for p, part in zip(self.parameters, parts, strict=True)]


@frozen
class DeferredGradients:
    """A layer's call, for the weighted sum of one parameter."""

    parameters: list[nn.Parameter]
    name: str
    call: LayerCall
    squared_norms: Tensor = field(repr=False)

    def weighted_sums(self, factors: Tensor, bad: Tensor | None) -> list[Tensor]:
        """Return the sum by the layer's rule."""
        call: Any = self.call if bad is None else _without(self.call, bad)
        return [call.weighted_sum(self.name, factors)]


def _without(call: Any, bad: Tensor) -> Any:
    """Return the same call with zeros for some examples.

    A factor of zero would not remove a NaN.
    """
    rows = bad.repeat_interleave(call.copies)
    x, g = (t.masked_fill(rows.view(-1, *[1] * (t.ndim - 1)), 0) for t in (call.x, call.g))
    return evolve(call, x=x, g=g)


@define
class _BatchRecord:
    """Record of one physical batch.

    Attributes:
        examples: B.
        calls: Number of uses of each parameter by known layers, by its id.
        kept: Calls from which a parameter's sum is computed in the end, by its id.
        rows: Per-example gradients, (B, …), by the parameter's id.
        floats: Stored numbers.
    """

    examples: int
    calls: dict[int, int] = Factory(dict)
    kept: dict[int, DeferredGradients] = Factory(dict)
    rows: dict[int, tuple[nn.Parameter, Tensor, Tensor | None]] = field(
        default=Factory(dict), repr=False
    )
    floats: int = 0

    def add(self, parameter: nn.Parameter, name: str, call: LayerCall) -> bool:
        """Add one call's contribution to one parameter.

        Return whether the call is stored.
        """
        once = self.calls[id(parameter)] == 1
        squares = call.squared_norms(name) if once else None
        if squares is not None:
            self.kept[id(parameter)] = DeferredGradients([parameter], name, call, squares)
            return True
        self.add_rows(parameter, call.grad_sample(name), is_last=once)
        return False

    def add_rows(self, parameter: nn.Parameter, rows: Tensor, *, is_last: bool = False) -> None:
        """Add per-example gradients to those already recorded."""
        key = id(parameter)
        if key in self.kept:
            called = self.kept.pop(key)
            rows = rows + called.call.grad_sample(called.name)
        if key in self.rows:
            rows = rows + self.rows[key][1]
        else:
            self.floats += rows.numel()
        # The norms of a large parameter are computed while its rows are in the caches.
        squares = squared_norms(rows) if is_last and parameter.numel() > SMALL else None
        self.rows[key] = (parameter, rows, squares)

    def close(self) -> list[Contribution]:
        """Return all contributions.  All small parameters of a network form one."""
        contributions: list[Contribution] = list(self.kept.values())
        small = []
        for parameter, rows, squares in self.rows.values():
            if parameter.numel() <= SMALL:
                small.append((parameter, rows.reshape(self.examples, -1)))
                continue
            found = squared_norms(rows) if squares is None else squares
            contributions.append(StoredGradients([parameter], rows.flatten(1), found))
        if small:
            together = torch.cat([rows for _, rows in small], 1)
            squares = together.double().square().sum(1)
            contributions.append(
                StoredGradients([parameter for parameter, _ in small], together, squares)
            )
        return contributions


class GradientRecorder:
    """Recorder of per-example gradients within a `with` block.

    It runs the examples of a network apart.
    """

    def __init__(
        self, net: nn.Module, state: ModuleState | None = None, *, has_copies: bool = False
    ) -> None:
        """Record a network's passes.

        Args:
            net: The network.
            state: The state at the start of every call, or None for the current state.
            has_copies: Whether parameters may be used outside their layers' calls.
        """
        state = ModuleState.of(net) if state is None else state
        self._parameters = [(n, p) for n, p in net.named_parameters() if p.requires_grad]
        self._batch: _BatchRecord | None = None
        self._pass: PerExamplePass | None = PerExamplePass(
            net, self._record_call, self._count_call, state.rewind, has_copies=has_copies
        )

    def __enter__(self) -> Self:
        assert self._pass is not None
        self._forget_gradients()
        self._pass.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        assert self._pass is not None
        self._pass.__exit__(kind, error, trace)
        # It calls back, so that each would keep the other, and the gradients, in memory.
        self._pass = None
        self._forget_gradients()

    def record(
        self, losses: Callable[[ExampleIndices], Tensor], batch: ExampleIndices
    ) -> tuple[list[Contribution], int]:
        """Run both passes of a physical batch.

        Args:
            losses: Returns the loss of each example at some positions, shape (B,).
            batch: Positions of examples, shape (B,).

        Returns:
            The parameters' contributions, and the count of stored numbers.

        Raises:
            UntrackedGradientError: The passes do not show each example's own gradient.
            SharedParameterError: They would, with copies of the parameters of known layers.
            PrivacyError: An example's output differs from its output alone.
        """
        assert self._pass is not None
        record = self._batch = _BatchRecord(len(batch))
        try:
            recorded = self._pass.run(losses, batch)
        finally:
            self._batch = None
        for copies in recorded:
            if copies.rows.grad is not None:
                record.add_rows(copies.parameter, _by_example(copies.rows.grad, record.examples))
                copies.rows.grad = None
        for name, parameter in self._parameters:
            if parameter.grad is not None:
                raise SharedParameterError(f"parameter '{name}' is used outside its layer's calls")
        with torch.no_grad():
            return record.close(), record.floats

    def _forget_gradients(self) -> None:
        for _, parameter in self._parameters:
            parameter.grad = None

    def _count_call(self, layer: Layer) -> None:
        assert self._batch is not None
        for _, parameter in layer.parameters:
            key = id(parameter)
            self._batch.calls[key] = self._batch.calls.get(key, 0) + 1

    def _record_call(self, layer: Layer, x: Tensor, g: Tensor, saved: tuple[Tensor, ...]) -> None:
        """Record one call of a layer, given its output's gradient."""
        record = self._batch
        assert record is not None
        assert layer.kind is not None
        dtype = layer.parameters[0][1].dtype
        with torch.no_grad(), torch.autocast(g.device.type, enabled=False), cached():
            x = x.to(dtype) if x.is_floating_point() else x
            call = layer.kind(layer.module, x, g.to(dtype), record.examples, saved)
            try:
                kept = [record.add(p, n, call) for n, p in layer.parameters if p.requires_grad]
            except RuntimeError as error:
                kind = type(layer.module).__name__
                raise UntrackedGradientError(f"a layer {kind} resists: {error}") from error
        record.floats += any(kept) * (x.numel() + g.numel())


def _by_example(rows: Tensor, examples: int) -> Tensor:
    """Return sums over the copies of each example, shape (B, …)."""
    if len(rows) == examples:
        return rows
    return rows.reshape(examples, -1, *rows.shape[1:]).sum(1)
