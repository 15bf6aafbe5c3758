"""State that a network keeps beside its parameters, and its restoration after a forward pass.

One example must not reach another through the network's memory.  So every pass of a private step
starts from the state that the network had before the step.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from attrs import Factory, define
from torch import nn

from cohortium.errors import PrivacyError

if TYPE_CHECKING:
    from collections.abc import Iterator

_MACHINERY = (frozenset(vars(nn.Module())) | {"forward", "prelude"}) - {"training"}
"""Parameters, buffers, layers and hooks, and the methods that `mapped_forward` replaces."""

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)

_DEPTH = 6
"""Containers and objects within one another that are looked into."""


@define
class ModuleState:
    """The attributes and buffers of a network at one moment.

    Guarantees:
        `restore` undoes what a pass has assigned to the network's modules, and to the lists,
        dictionaries, sets, arrays and plain objects that they hold.  A tensor that was altered in
        place, or a buffer that was replaced, is refused.  Memory elsewhere, in a module's globals
        or a closure, is not seen here.
    """

    _net: nn.Module
    _attributes: list[tuple[dict[str, Any], dict[str, Any]]] = Factory(list)
    _containers: list[tuple[Any, Any]] = Factory(list)
    _tensors: list[tuple[str, torch.Tensor, int]] = Factory(list)
    _buffers: list[tuple[str, nn.Module, str, torch.Tensor | None]] = Factory(list)
    _seen: set[int] = Factory(set)

    @classmethod
    def of(cls, net: nn.Module) -> ModuleState:
        """Record the state of `net`; tensors are recorded by their version, not copied."""
        state = cls(net)
        for name, module in net.named_modules():
            own = vars(module)
            state._attributes.append((own, {k: v for k, v in own.items() if k not in _MACHINERY}))
            for key, value in own.items():
                if key not in _MACHINERY:
                    state._record(f"{name}.{key}".lstrip("."), value, _DEPTH)
            for key, buffer in module._buffers.items():  # noqa: SLF001
                place = f"{name}.{key}".lstrip(".")
                state._buffers.append((place, module, key, buffer))
                if buffer is not None:
                    state._tensors.append((place, buffer, buffer._version))  # noqa: SLF001
        return state

    def restore(self) -> None:
        """Bring the attributes back.

        Raises:
            PrivacyError: A buffer or a tensor was altered; the sentence names it.
        """
        for own, before in self._attributes:
            for key in [k for k in own if k not in _MACHINERY and k not in before]:
                del own[key]
            own.update(before)
        for container, before in self._containers:
            _refill(container, before)
        moved = next(self._moved(), None)
        if moved is not None:
            raise PrivacyError(
                f"the network {type(self._net).__name__} keeps a memory of what it sees in "
                f"'{moved}', by which one example would reach another's gradient; remove it, or "
                "use the privatizer's unit 'site'."
            )

    def _moved(self) -> Iterator[str]:
        for place, module, key, buffer in self._buffers:
            now = module._buffers.get(key)  # noqa: SLF001
            if now is not buffer:
                module._buffers[key] = buffer  # noqa: SLF001
                yield place
        for place, tensor, version in self._tensors:
            if tensor._version != version:  # noqa: SLF001
                yield place

    def _record(self, place: str, value: Any, depth: int) -> None:
        if isinstance(value, _PLAIN) or not depth or id(value) in self._seen:
            return
        if isinstance(value, torch.Tensor):
            self._tensors.append((place, value, value._version))  # noqa: SLF001
            return
        if isinstance(value, nn.Module | type) or callable(value):
            return
        self._seen.add(id(value))
        inside: Any = ()
        if isinstance(value, dict):
            self._containers.append((value, dict(value)))
            inside = value.values()
        elif isinstance(value, list | set | deque | bytearray):
            self._containers.append((value, value.copy()))
            inside = value
        elif isinstance(value, np.ndarray):
            self._containers.append((value, value.copy()))
        elif isinstance(value, tuple | frozenset):
            inside = value
        elif hasattr(value, "__dict__"):
            self._containers.append((vars(value), dict(vars(value))))
            inside = vars(value).values()
        for item in list(inside):
            self._record(place, item, depth - 1)


def _refill(container: Any, before: Any) -> None:
    """Give a container its earlier content."""
    if isinstance(container, np.ndarray):
        container[...] = before
    elif isinstance(container, list | bytearray):
        container[:] = before
    else:
        container.clear()
        extend = container.extend if isinstance(container, deque) else container.update
        extend(before)
