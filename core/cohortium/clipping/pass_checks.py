"""Checks of a private pass on its own data.

They find the faults that `mapped_forward` cannot see.
"""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from attrs import field, frozen
from torch._functorch.autograd_function import custom_function_call
from torch.overrides import TorchFunctionMode

from cohortium.clipping.recurrent import mappable
from cohortium.errors import PrivacyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class UntrackedGradientError(Exception):
    """A pass that does not show each example's own gradient.

    It is a forward or a backward pass.
    """


class SharedParameterError(UntrackedGradientError):
    """A parameter of a known layer is used outside that layer's calls."""


SCALE_TOLERANCE = 1e-3
"""Largest gap between a scaled loss's gradient and the scaled gradient.

It is relative to the largest gradient.
"""

ALONE_TOLERANCE = 1e-2
"""Largest gap between a row's output and its output alone.

It is relative to the largest output.
"""


ALONE_FLOOR = 1e-3
"""Smallest output of a comparison: smaller outputs count as this large."""


class LossScalingCheck:
    """Check that weights on losses scale the rows of their own examples.

    A trainer may reorder the rows of examples, compared with the batch.  Then each example would be
    clipped as if it were another one.
    """

    def __init__(self, losses: Tensor, outputs: list[Tensor]) -> None:
        self._outputs = [t for t in outputs if t.requires_grad]
        steps = torch.arange(len(losses), device=losses.device)
        # Powers of two make the scaling exact.  Neighbours differ.
        self._weights = torch.tensor([1.0, -0.5, 2.0, -4.0, 0.25], device=losses.device)[steps % 5]
        self._scaled = torch.autograd.grad(
            losses, self._outputs, self._weights.to(losses.dtype), retain_graph=True,
            allow_unused=True,
        )  # fmt: skip
        self._plain: dict[int, Tensor] = {}
        for i, output in enumerate(self._outputs):
            output.register_hook(partial(self._plain.__setitem__, i))  # type: ignore[no-untyped-call]

    def require(self) -> None:
        """Compare the gradients after the backward pass.

        Raises:
            UntrackedGradientError: They differ.
        """
        for i, scaled in enumerate(self._scaled):
            plain = self._plain.get(i)
            if scaled is None or plain is None:
                continue
            each = self._weights.repeat_interleave(len(plain) // len(self._weights))
            wanted = plain * each.to(plain.dtype).view(-1, *[1] * (plain.ndim - 1))
            if scaled.is_meta:
                continue
            gap = (wanted - scaled).abs().nan_to_num(0.0, 0.0, 0.0).max()
            if not bool(gap <= SCALE_TOLERANCE * scaled.abs().nan_to_num(0.0, 0.0, 0.0).max()):
                raise UntrackedGradientError("a loss depends on the rows of another example")


def _getter(name: str) -> Any:
    """Return the function that reads an attribute of a tensor."""
    return vars(torch._C.TensorBase)[name].__get__  # noqa: SLF001


_GRADIENT_HOOKS = frozenset({
    torch.Tensor.register_hook, torch.Tensor.register_post_accumulate_grad_hook,
    _getter("grad_fn"),
})  # fmt: skip
_REQUIRES_GRAD = _getter("requires_grad")
_NAMESPACES = frozenset({"aten", "prim", "prims", "torchvision"})
"""Namespaces of operations without third parties' rules for rows."""


class Watch(TorchFunctionMode):
    """Monitor that refuses calls with the rows of all examples.

    It watches a mapped pass.  A function with its own rule for `vmap` receives them, and so does a
    hook on a gradient.
    """

    def __init__(self, own: type[torch.autograd.Function]) -> None:
        """Allow only our own function to have its own rule."""
        super().__init__()
        self._own, self._modes = own, torch._C._len_torch_dispatch_stack()  # noqa: SLF001

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        """Call `func` or its substitute, or refuse it.

        Raises:
            UntrackedGradientError: It would receive the rows of all examples.
        """
        if func == _REQUIRES_GRAD:  # a row says no, and then a hook would be left out
            value = args[0]
            if is_vmap_row(value):
                value = torch._C._functorch.get_unwrapped(value)  # noqa: SLF001
            return value.requires_grad
        if torch._C._len_torch_dispatch_stack() > self._modes:  # noqa: SLF001
            raise UntrackedGradientError("a mode of torch looks at the network's operations")
        if func in _GRADIENT_HOOKS:
            raise UntrackedGradientError("a gradient is looked at within the network")
        if func is custom_function_call:
            kind = args[0]
            if kind is not self._own and kind.vmap is not torch.autograd.Function.vmap:
                raise UntrackedGradientError(
                    f"the function {kind.__name__} has its own rule for vmap"
                )
        elif isinstance(func, torch._ops.OpOverload) and func.namespace not in _NAMESPACES:  # noqa: SLF001
            raise UntrackedGradientError(f"the operation {func} may have its own rule for vmap")
        return (mappable(func, args) or func)(*args, **(kwargs or {}))


def has_seeded(call: Callable[[], object], device: torch.device) -> bool:
    """Return whether a call that draws seeds the generators.

    Such a call leaves them in one state, which does not depend on their state before.  With a seed,
    mapped rows would draw different numbers, by their place in the batch.
    """
    states = torch.random.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        call()
        first = generator_states(device)
        call()
        second = generator_states(device)
    torch.random.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])  # noqa: NPY002
    return first == second


def is_vmap_row(value: Any) -> bool:
    """Return whether a value is one row of a mapped call."""
    is_mapped = torch._C._functorch.is_batchedtensor  # noqa: SLF001
    return type(value) is torch.Tensor and is_mapped(value)


@frozen
class Alone:
    """The call of a network with one example alone, for comparison.

    Attributes:
        kind: The network's name.
        call: Returns the outputs of a call with that example.
        output: The outputs of the call before.
    """

    kind: str
    call: Callable[[], list[Tensor]]
    output: list[Tensor] = field(repr=False)

    def is_same(self) -> bool:
        """Return whether the outputs are the same now."""
        found = [t.detach() for t in self.call()]
        return len(found) == len(self.output) and all(map(_is_near, self.output, found))

    def require(self) -> None:
        """Compare twice.

        The second call follows a call with the same example.

        Raises:
            PrivacyError: The outputs differ.  The network has a memory that its modules do not
                show.
        """
        if not (self.is_same() and self.is_same()):
            raise PrivacyError(
                f"the network {self.kind} gives an example another output alone than in a batch, "
                "so that one example would reach another's gradient; remove its memory and its own "
                "generators, or use the privatizer's unit 'site'."
            )


def _is_near(mapped: Tensor, single: Tensor) -> bool:
    if mapped.is_meta or mapped.shape != single.shape:
        return mapped.is_meta
    if not mapped.is_floating_point():
        return bool((mapped == single).all())
    room = ALONE_TOLERANCE * (single.abs().max() + ALONE_FLOOR) if single.numel() else 0.0
    gap = (mapped - single).abs()
    return not bool((gap > room).any())


def generator_states(device: torch.device) -> tuple[Any, ...]:
    """Return the states of the generators that a network may use."""
    numpy: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    found: tuple[Any, ...] = (
        torch.random.get_rng_state().numpy().tobytes(),
        random.getstate(),
        numpy["state"]["pos"],
        numpy["has_gauss"],
        numpy["state"]["key"].tobytes(),
    )
    if device.type == "cuda":
        found += (torch.cuda.get_rng_state(device).numpy().tobytes(),)
    return found
