"""Recorded calls of a network, and compared settings of a layer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from attrs import Factory, define, frozen
from torch import nn
from torch.utils import _pytree as pytree

from cohortium.clipping.pass_checks import Alone, generator_states

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


@define
class Recording:
    """Recorder of a network's outermost calls within a `with`, for repetition."""

    net: nn.Module
    restore: Callable[[], None]
    calls: list[Alone] = Factory(list)
    _is_inside: bool = False
    _patched: list[tuple[nn.Module, str, Any]] = Factory(list)

    def __enter__(self) -> Self:
        for module in self.net.modules():
            for name in ("forward", "statistics_loss", "_call_impl"):
                if callable(original := getattr(module, name, None)):
                    self._patched.append((module, name, vars(module).get(name)))
                    vars(module)[name] = partial(self._call, module, original)
        return self

    def __exit__(self, *_: object) -> None:
        unpatch(self._patched)

    def _call(
        self, module: nn.Module, original: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        if self._is_inside:
            return original(*args, **kwargs)
        kept = pytree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs))
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        has_gradients = torch.is_grad_enabled()
        values = {id(m): dict(m._parameters) for m in module.modules()}  # noqa: SLF001

        def again() -> list[Tensor]:
            self.restore()
            args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, kept)
            with torch.set_grad_enabled(has_gradients), _Parameters(module, values):
                return _tensors(original(*args, **kwargs))

        before, self._is_inside = generator_states(device), True
        try:
            output = original(*args, **kwargs)
        finally:
            self._is_inside = False
        if before == generator_states(device):
            found = [t.detach().clone() for t in _tensors(output)]
            self.calls.append(Alone(type(module).__name__, again, found))
        return output


class _Parameters:
    """The parameters that modules had at a call, substituted values included."""

    def __init__(self, module: nn.Module, values: dict[int, dict[str, Any]]) -> None:
        self._places = [
            (m._parameters, values[id(m)])  # noqa: SLF001
            for m in module.modules()
            if isinstance(m._parameters, dict)  # noqa: SLF001
        ]

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *_: object) -> None:
        self._swap()

    def _swap(self) -> None:
        for place, values in self._places:
            now = dict(place)
            place.update(values)
            values.update(now)


@frozen
class Settings:
    """The attributes of a layer and of its weight's parametrizations."""

    _before: list[tuple[dict[str, Any], dict[str, Any]]]

    @classmethod
    def of(cls, layer: nn.Module) -> Self:
        """Record the current attributes of `layer`."""
        return cls([(vars(m), _attributes(m)) for m in layer.modules()])

    def are_same(self) -> bool:
        """Return whether the attributes are unchanged."""
        return all(
            own.get(key) is value or (isinstance(value, _COMPARED) and own.get(key) == value)
            for own, before in self._before
            for key, value in before.items()
        ) and all(len(_keys(own)) == len(before) for own, before in self._before)


_COMPARED = (bool, int, float, str, tuple)


def _keys(own: dict[str, Any]) -> set[str]:
    return own.keys() - {"forward", "statistics_loss", "_call_impl"}


def _attributes(module: nn.Module) -> dict[str, Any]:
    own = vars(module)
    return {key: own[key] for key in _keys(own)}


def _tensors(output: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(output) if isinstance(t, torch.Tensor)]


def unpatch(patched: list[tuple[nn.Module, str, Any]]) -> None:
    """Restore the own methods of modules."""
    for module, name, own in patched:
        if own is None:
            del vars(module)[name]
        else:
            vars(module)[name] = own
    patched.clear()
