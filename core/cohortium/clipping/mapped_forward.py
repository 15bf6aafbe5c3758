"""One forward pass with every example by itself.

`torch.func.vmap` maps the network's own code, written for a batch, over batches of one example.
So one example cannot enter another's output, whichever way the code uses its first axis.

The code receives one copy of a parameter for each row.  The gradient of a copy is the gradient of
its row alone, however the code used the parameter.  A layer with a known rule takes the parameter
itself instead, which is faster.  Its input and output gradient are stored by row.  The position of
the row's axis comes from `vmap`, not from a shape.
"""

from __future__ import annotations

import contextlib
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from attrs import Factory, define, field
from torch import nn
from torch.utils import _pytree as pytree

from cohortium.clipping.module_call import (
    ParameterCopies,
    SubstitutedParameters,
    VmappedCall,
    output_tensors,
    refuse_saving_hooks,
)
from cohortium.clipping.module_checks import (
    has_hooks,
    require_constant_weights,
    require_no_gradient_hook,
)
from cohortium.clipping.pass_checks import (
    Alone,
    LossScalingCheck,
    UntrackedGradientError,
    Watch,
    generator_states,
    has_seeded,
    is_vmap_row,
)
from cohortium.clipping.recording import Settings, unpatch
from cohortium.clipping.registry import Layer, find_parameter_layers
from cohortium.clipping.vmap_rule import AllRows, VectorizedCall
from cohortium.errors import CohortiumError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from torch import Tensor

    from cohortium.roles.values import ExampleIndices


@define
class PerExamplePass:
    """A network with calls mapped over rows, within a `with`.

    The rows are those of the inputs.

    Attributes:
        net: The network.
        on_layer_gradient: Callback for a known layer's call in the backward pass.  It receives the
            layer, its input (N, …), the gradient of its output (N, …), and tensors that torch saved
            of the call.
        on_layer_call: Callback for a known layer's call in the forward pass.
        restore: Restores the state of the network's modules before the pass.
        has_copies: Whether known layers' parameters are copied, too, outside their calls.
        calls: The mapped calls of the current batch.
    """

    net: nn.Module
    on_layer_gradient: Callable[[Layer, Tensor, Tensor, tuple[Tensor, ...]], None]
    on_layer_call: Callable[[Layer], None]
    restore: Callable[[], None]
    has_copies: bool = False
    calls: list[VmappedCall] = Factory(list)
    _examples: int = 0
    _is_mapping: bool = False
    _is_last: bool = False
    _is_tried: bool = False
    _layers: dict[int, Layer] = Factory(dict)
    _settings: dict[int, Settings] = Factory(dict)
    _given: dict[int, Tensor] = field(default=Factory(dict), repr=False)
    _patched: list[tuple[nn.Module, str, Any]] = Factory(list)
    _copied: list[nn.Parameter] = Factory(list)

    def __enter__(self) -> Self:
        layers = find_parameter_layers(self.net)
        for layer in layers:
            require_constant_weights(layer)
        require_no_gradient_hook(self.net)
        self._layers = {
            id(layer.module): layer
            for layer in layers
            if layer.kind is not None and "forward" not in vars(layer.module)
        }
        self._settings = {key: Settings.of(layer.module) for key, layer in self._layers.items()}
        known = {id(p) for layer in self._layers.values() for _, p in layer.parameters}
        self._copied = [
            p
            for p in self.net.parameters()
            if p.requires_grad and (self.has_copies or id(p) not in known)
        ]
        for module in self.net.modules():
            for name in ("forward", "statistics_loss"):
                if callable(original := getattr(module, name, None)):
                    self._patch(module, name, partial(self._forward, module, original))
            if has_hooks(module):  # because its hooks are the network's code, too
                call = partial(self._call, module, module._call_impl)  # noqa: SLF001
                self._patch(module, "_call_impl", call)
        return self

    def _patch(self, module: nn.Module, name: str, method: Callable[..., Any]) -> None:
        self._patched.append((module, name, vars(module).get(name)))
        vars(module)[name] = method

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        unpatch(self._patched)
        self.calls.clear()

    def run(
        self, losses: Callable[[ExampleIndices], Tensor], batch: ExampleIndices
    ) -> list[ParameterCopies]:
        """Compute the losses of a batch and their gradients.

        Returns the parameters' copies.

        Args:
            losses: Returns the loss of each example at some positions, shape (B,).
            batch: Positions of examples, shape (B,).

        Raises:
            UntrackedGradientError: A pass cannot be mapped, or a row's gradient does not scale as
                its example's loss does.
            PrivacyError: An output differs from the output of its example alone.
        """
        self.calls.clear()
        self._examples = len(batch)
        try:
            calls = self._passes(losses, batch)
        except (CohortiumError, UntrackedGradientError):
            raise
        except Exception as error:
            raise UntrackedGradientError(f"the passes cannot be mapped ({error})") from error
        finally:
            self._examples = 0
            self.calls.clear()
        return [copies for call in calls for copies in call.copies]

    def _passes(
        self, losses: Callable[[ExampleIndices], Tensor], batch: ExampleIndices
    ) -> list[VmappedCall]:
        each = losses(batch)
        calls = list(self.calls)
        if each.shape != batch.shape:
            raise UntrackedGradientError(f"the losses have the shape {tuple(each.shape)}")
        if each.requires_grad:
            check = LossScalingCheck(each, [t for call in calls for t in call.output])
            total = each.sum()
            self._forget_gradients(calls)
            self._is_last = True
            try:
                total.backward()  # type: ignore[no-untyped-call]
            finally:
                self._is_last = False
            check.require()
        return calls

    def _forget_gradients(self, calls: list[VmappedCall]) -> None:
        """Drop gradients that the losses' own code has computed.

        An example is the direction of an adversarial attack.
        """
        for parameter in self.net.parameters():
            parameter.grad = None
        for call in calls:
            for copies in call.copies:
                copies.rows.grad = None

    def _call(
        self, module: nn.Module, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Call a module with its hooks."""
        if self._is_mapping or not self._examples:
            return original(*args, **kwargs)
        return self._mapped(module, original, original, args, kwargs)

    def _forward(
        self, module: nn.Module, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        if not self._examples:
            return original(*args, **kwargs)
        if not self._is_mapping:
            inner = partial(self._forward, module, original)
            return self._mapped(module, original, inner, args, kwargs)
        layer = self._layers.get(id(module))
        if layer is None or kwargs or len(args) != 1 or not is_vmap_row(args[0]):
            return original(*args, **kwargs)
        if not torch.is_grad_enabled() or not self._is_as_before(layer):
            return original(*args, **kwargs)
        return self._known(layer, original, args[0])

    def _is_as_before(self, layer: Layer) -> bool:
        """Return whether the layer's rule will find the same parameters and settings."""
        for name, parameter in layer.parameters:
            holder, _, key = name.rpartition(".")
            place = layer.module.get_submodule(holder) if holder else layer.module
            now = place._parameters.get(key)  # noqa: SLF001
            if now is not parameter and now is not self._given.get(id(parameter)):
                return False
        return self._settings[id(layer.module)].are_same()

    def _mapped(
        self, module: nn.Module, original: Callable[..., Any], inner: Callable[..., Any],
        args: tuple[Any, ...], kwargs: dict[str, Any],
    ) -> Any:  # fmt: skip
        """Call a module with each row of its inputs by itself."""
        flat, structure = pytree.tree_flatten((args, kwargs))
        places = [i for i, value in enumerate(flat) if isinstance(value, torch.Tensor)]
        rows = [flat[i] for i in places]
        kind = type(module).__name__
        if not rows or any(t.ndim == 0 or len(t) != len(rows[0]) for t in rows):
            raise UntrackedGradientError(f"{kind} is called with tensors of different lengths")
        if len(rows[0]) % self._examples:
            raise UntrackedGradientError(f"{kind} is not called with as many rows for each example")
        own = {id(p) for p in module.parameters()} if torch.is_grad_enabled() else set()
        copies = [
            ParameterCopies(p, p.detach().expand(len(rows[0]), *p.shape).requires_grad_())
            for p in self._copied
            if id(p) in own
        ]
        middle = len(rows[0]) // 2
        kept = [t[middle : middle + 1].clone() for t in rows]  # before the code alters them

        def arguments(rows: list[Tensor]) -> Any:
            given = list(flat)
            for i, row in zip(places, rows, strict=True):
                given[i] = row
            return pytree.tree_unflatten(given, structure)

        def call() -> list[Tensor]:
            self.restore()
            inputs, options = arguments([t.clone() for t in kept])
            return output_tensors(original(*inputs, **options), kind)[0]

        def alone(rows: list[Tensor], values: list[Tensor]) -> list[Tensor]:
            inputs, options = arguments([row.unsqueeze(0) for row in rows])
            pairs = zip(copies, values, strict=True)
            self._given = {id(c.parameter): value for c, value in pairs}
            with (
                SubstitutedParameters(module, self._given),
                Watch(AllRows),
                refuse_saving_hooks(),
            ):
                output = inner(*inputs, **options)
            tensors, shape[:] = output_tensors(output, kind)
            return tensors

        shape: list[Any] = []
        before = generator_states(rows[0].device)
        self._is_mapping = True
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="There is a performance drop")
                mapped = torch.func.vmap(alone, randomness="different")
                output: list[Tensor] = mapped(rows, [c.rows for c in copies])
        finally:
            self._is_mapping = False
            self._given = {}
        self._require_same_alone(
            Alone(kind, call, [t[middle].detach() for t in output]),
            has_drawn=before != generator_states(rows[0].device), device=rows[0].device,
        )  # fmt: skip
        self.calls.append(VmappedCall(output, copies))
        return pytree.tree_unflatten(output, shape[0])

    def _require_same_alone(self, alone: Alone, *, has_drawn: bool, device: torch.device) -> None:
        """Compare a row's output with its output alone.

        Where the network draws, check once whether it seeds.
        """
        with self._paused():
            if not has_drawn and not alone.is_same():
                raise UntrackedGradientError(
                    f"{alone.kind} gives an example another output alone than in a batch"
                )
            if has_drawn and not self._is_tried and has_seeded(alone.call, device):
                raise UntrackedGradientError(f"{alone.kind} seeds the generator that it draws from")
        self.restore()
        self._is_tried = True

    def _known(self, layer: Layer, original: Callable[..., Any], x: Tensor) -> Tensor:
        """Call a layer with its own parameters, for all rows at once."""
        self.on_layer_call(layer)
        with SubstitutedParameters(layer.module, {}, detached=dict(layer.trained)):
            enter = partial(self._enter, layer)
            return VectorizedCall(layer, original, enter, lambda: self._is_last).for_row(x)

    def _enter(self, layer: Layer, x: Tensor, g: Tensor, saved: tuple[Tensor, ...]) -> None:
        """Report a layer's call.

        Its rule may compute the layer's weight again, unmapped.
        """
        with self._paused():
            self.on_layer_gradient(layer, x, g, saved)

    @contextlib.contextmanager
    def _paused(self) -> Iterator[None]:
        """Leave the network's calls unmapped."""
        examples, self._examples = self._examples, 0
        try:
            yield
        finally:
            self._examples = examples
