"""State that a network keeps apart from its gradients, and its restoration.

One example must not reach another through the network's memory.  So every pass of a private step
starts from the state that the network had before the step.
"""

from __future__ import annotations

import pickle
import random
from collections import deque
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from attrs import Factory, define, field, frozen
from torch import nn

from cohortium.errors import PrivacyError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_PATCHED = frozenset({"forward", "statistics_loss", "_call_impl"})
"""Methods that `mapped_forward` replaces for a pass."""

_HELD = frozenset({"_parameters", "_buffers", "_modules"})
"""Attributes that are recorded separately: parameters, buffers and layers.

Layers have names of their own.
"""

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)

_GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)

_DEPTH = 6
"""Largest depth of nested containers and objects that are recorded."""

_ABSENT = object()


@frozen
class _Held:
    """A tensor at the time of the record.

    Attributes:
        place: Its name.
        tensor: The tensor.
        version: How often it had been altered in place.
        values: A copy.  Code that uses `.data` alters a tensor without a change of its version.
        is_parameter: Whether it is a parameter.
    """

    place: str
    tensor: torch.Tensor = field(repr=False)
    version: int
    values: torch.Tensor = field(repr=False)
    is_parameter: bool


@define
class ModuleState:
    """The parameters, buffers and attributes of a network at one moment.

    Guarantees:
        `restore` undoes the assignments of a pass to the network's modules.  It also undoes those
        to the lists, dictionaries, sets, arrays, plain objects, closures and unregistered modules
        that they hold.
        It refuses a tensor that was altered in place or replaced, and `require_same` compares its
        values.
        Memory elsewhere, in a global or a class, is not recorded.
    """

    _net: nn.Module
    _attributes: list[tuple[dict[str, Any], dict[str, Any]]] = Factory(list)
    _containers: list[tuple[Any, Any]] = Factory(list)
    _empty: list[Any] = Factory(list)
    _slots: list[tuple[Any, dict[str, Any]]] = Factory(list)
    _cells: list[tuple[Any, Any]] = Factory(list)
    _tensors: list[_Held] = Factory(list)
    _places: list[tuple[str, dict[str, Any], dict[str, Any]]] = Factory(list)
    _generators: list[tuple[str, Any, bytes]] = Factory(list)
    _seen: dict[int, Any] = Factory(dict)

    @classmethod
    def of(cls, net: nn.Module) -> ModuleState:
        """Record the state of `net`."""
        state = cls(net)
        state._record_module("", net, _DEPTH)
        return state

    def restore(self) -> None:
        """Restore the attributes after a pass.

        Raises:
            PrivacyError: A tensor was altered or replaced.  The sentence names it.
        """
        self.rewind()
        for place, is_parameter in self._moved():
            self._refuse(place, is_parameter=is_parameter)

    def rewind(self) -> None:
        """Restore the attributes within a pass.

        Other values may replace the parameters at this time.
        """
        for own, before in self._attributes:
            if len(own) != len(before):
                for key in [k for k in own if k not in _PATCHED and k not in before]:
                    del own[key]
            own.update(before)
        for container in self._empty:
            if container:
                container.clear()
        for container, before in self._containers:
            _restore_container(container, before)
        for value, before in self._slots:
            _refill_slots(value, before)
        for cell, before in self._cells:
            cell.cell_contents = before

    def require_same(self) -> None:
        """Compare values, after the last pass.

        Raises:
            PrivacyError: The values of a tensor differ, or a generator of the network's own drew.
        """
        for held in self._tensors:
            if not _is_same(held.tensor.detach(), held.values):
                self._refuse(held.place, is_parameter=held.is_parameter)
        for place, generator, before in self._generators:
            if _drawn(generator) != before:
                raise PrivacyError(
                    f"the network {type(self._net).__name__} draws from a generator of its own in "
                    f"'{place}', so that one example's draws depend on how many came before it; "
                    "draw from torch's own generator, or use the privatizer's unit 'site'."
                )

    def _refuse(self, place: str, *, is_parameter: bool) -> None:
        kind = type(self._net).__name__
        if is_parameter:
            raise PrivacyError(
                f"the network {kind} alters its parameter '{place}' as it runs, by which one "
                "example would reach another's gradient; leave that to the optimizer, or use the "
                "privatizer's unit 'site'."
            )
        raise PrivacyError(
            f"the network {kind} keeps a memory of its input in '{place}', by which one example "
            "would reach another's gradient; remove it, or use the privatizer's unit 'site'."
        )

    def _moved(self) -> Iterator[tuple[str, bool]]:
        for name, places, before in self._places:
            if len(places) > len(before):
                for key in places.keys() - before.keys():
                    del places[key]
            for key, value in before.items():
                if places.get(key, _ABSENT) is not value:
                    places.update(before)
                    yield f"{name}.{key}".lstrip("."), isinstance(value, nn.Parameter)
        for held in self._tensors:
            if not held.is_parameter and _version(held.tensor) != held.version:
                yield held.place, False

    def _record_module(self, name: str, module: nn.Module, depth: int) -> None:
        if id(module) in self._seen:
            return
        self._seen[id(module)] = module
        own = vars(module)
        self._attributes.append((own, {k: v for k, v in own.items() if k not in _PATCHED}))
        for key, value in own.items():
            if key not in _PATCHED and key not in _HELD:
                self._record(f"{name}.{key}", value, depth)
        if isinstance(module._modules, dict):  # noqa: SLF001
            self._containers.append((module._modules, dict(module._modules)))  # noqa: SLF001
        for child_name, child in module.named_children():
            self._record_module(f"{name}.{child_name}", child, depth)
        for places in (module._parameters, module._buffers):  # noqa: SLF001
            if isinstance(places, dict):  # a script module's are made again on each access
                self._places.append((name, places, dict(places)))
            for key, tensor in places.items():
                if tensor is not None:
                    self._record_tensor(f"{name}.{key}", tensor)

    def _record_tensor(self, place: str, tensor: torch.Tensor) -> None:
        if id(tensor) in self._seen or nn.parameter.is_lazy(tensor):
            return
        self._seen[id(tensor)] = tensor
        is_parameter = isinstance(tensor, nn.Parameter)
        values = tensor.detach().clone()
        self._tensors.append(
            _Held(place.lstrip("."), tensor, _version(tensor), values, is_parameter)
        )

    def _record(self, place: str, value: Any, depth: int) -> None:
        if isinstance(value, _PLAIN) or not depth or id(value) in self._seen:
            return
        if isinstance(value, dict) and not value:
            self._empty.append(value)
        elif isinstance(value, torch.Tensor):
            self._record_tensor(place, value)
        elif isinstance(value, nn.Module):
            self._record_module(place, value, depth - 1)
        elif isinstance(value, _GENERATORS):
            self._generators.append((place.lstrip("."), value, _drawn(value)))
        elif not isinstance(value, type | ModuleType):
            self._seen[id(value)] = value
            for item in list(self._inside(value)):
                self._record(place, item, depth - 1)

    def _inside(self, value: Any) -> Iterable[Any]:  # noqa: PLR0911 - one for each kind
        """Record the mutable parts of a value.

        Return the values that it holds.
        """
        if isinstance(value, FunctionType):
            return [*self._cells_of(value), *(value.__defaults__ or ()), value.__kwdefaults__]
        if isinstance(value, MethodType):
            return (value.__self__, value.__func__)
        if isinstance(value, partial):
            return (value.func, value.args, value.keywords)
        if type(value).__module__.partition(".")[0] in {"torch", "logging"}:
            return ()  # for example a graph, whose changes are not the network's
        if isinstance(value, dict):
            self._containers.append((value, dict(value)))
            return value.values()
        if isinstance(value, list | set | deque | bytearray):
            self._containers.append((value, value.copy()))
            return value
        if isinstance(value, np.ndarray):
            if value.flags.writeable:
                self._containers.append((value, value.copy()))
            return ()
        if isinstance(value, tuple | frozenset):
            return value
        return self._inside_object(value)

    def _inside_object(self, value: Any) -> Iterable[Any]:
        inside: list[Any] = []
        if isinstance(own := getattr(value, "__dict__", None), dict):
            self._containers.append((own, dict(own)))
            inside += own.values()
        if slots := _slots_of(value):
            self._slots.append((value, slots))
            inside += [item for item in slots.values() if item is not _ABSENT]
        return inside

    def _cells_of(self, function: FunctionType) -> Iterator[Any]:
        for cell in function.__closure__ or ():
            try:
                contents = cell.cell_contents
            except ValueError:  # the cell is not filled yet
                continue
            self._cells.append((cell, contents))
            yield contents


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # noqa: SLF001


def _is_same(now: torch.Tensor, before: torch.Tensor) -> bool:
    """Return whether two tensors have the same values, NaN included."""
    if now.shape != before.shape or now.dtype != before.dtype:
        return False
    if now.is_meta or now.layout != torch.strided or now.is_quantized:
        return True  # because only their versions can be compared
    if torch.equal(now, before):
        return True
    return bool(((now == before) | ((now != now) & (before != before))).all())  # noqa: PLR0124


def _drawn(generator: Any) -> bytes:
    """Return the state of a generator."""
    if isinstance(generator, torch.Generator):
        return generator.get_state().numpy().tobytes()
    if isinstance(generator, random.Random):
        return pickle.dumps(generator.getstate())
    if isinstance(generator, np.random.RandomState):
        return pickle.dumps(generator.get_state())
    return pickle.dumps(generator.bit_generator.state)


def _slots_of(value: Any) -> dict[str, Any]:
    """Return the attributes of a value that `__slots__` declares."""
    found: dict[str, Any] = {}
    for kind in type(value).__mro__:
        names = vars(kind).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if name not in {"__dict__", "__weakref__"}:
                inner = name.startswith("__") and not name.endswith("__")
                key = f"_{kind.__name__.lstrip('_')}{name}" if inner else name
                found[key] = getattr(value, key, _ABSENT)
    return found


def _refill_slots(value: Any, before: dict[str, Any]) -> None:
    for name, item in before.items():
        if getattr(value, name, _ABSENT) is not item:
            if item is _ABSENT:
                object.__delattr__(value, name)
            else:
                object.__setattr__(value, name, item)


def _restore_container(container: Any, before: Any) -> None:
    """Restore the earlier content of a container."""
    if isinstance(container, np.ndarray):
        container[...] = before
    elif isinstance(container, list | bytearray):
        container[:] = before
    elif isinstance(container, dict):
        same = len(container) == len(before)
        if not same or any(container.get(k, _ABSENT) is not v for k, v in before.items()):
            container.clear()
            container.update(before)
    else:
        container.clear()
        extend = container.extend if isinstance(container, deque) else container.update
        extend(before)
