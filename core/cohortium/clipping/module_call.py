"""The mapping of one module's call: parameters for each row, and the row's output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from attrs import field, frozen
from torch import nn
from torch.utils import _pytree as pytree

from cohortium.clipping.pass_checks import UntrackedGradientError

if TYPE_CHECKING:
    import contextlib

    from torch import Tensor


@frozen
class ParameterCopies:
    """A parameter in a mapped pass: one copy for each row.

    Attributes:
        parameter: The parameter, shape S.
        rows: The copies, shape (N, *S).  Their `.grad` is by row.
    """

    parameter: nn.Parameter
    rows: Tensor = field(repr=False)


@frozen
class VmappedCall:
    """One mapped call of a network.

    Attributes:
        output: Its tensors, each of shape (N, …).
        copies: Its parameters.
    """

    output: list[Tensor] = field(repr=False)
    copies: list[ParameterCopies]


def refuse_saving_hooks() -> contextlib.AbstractContextManager[None]:
    """Refuse hooks on saved tensors.

    They would receive the rows of all examples.
    """
    return torch.autograd.graph.disable_saved_tensors_hooks(
        "what is saved for the backward pass is replaced"
    )


def output_tensors(output: Any, kind: str) -> tuple[list[Tensor], list[Any]]:
    """Return the tensors of one row's output, and their structure.

    The tensors lack the axis of length one.
    """
    tensors, structure = pytree.tree_flatten(output)
    if not tensors:
        raise UntrackedGradientError(f"{kind} gives nothing")
    for tensor in tensors:
        if not isinstance(tensor, torch.Tensor) or tensor.ndim == 0 or len(tensor) != 1:
            raise UntrackedGradientError(f"{kind} gives something else than one row for each row")
    return [tensor.squeeze(0) for tensor in tensors], [structure]


class SubstitutedParameters:
    """Substitutes for a module's parameters, within a `with`."""

    def __init__(
        self, module: nn.Module, values: dict[int, Tensor],
        *, detached: dict[str, nn.Parameter] | None = None,
    ) -> None:  # fmt: skip
        self._module, self._values, self._detached = module, values, detached
        self._before: list[tuple[dict[str, Any], str, Any]] = []

    def __enter__(self) -> None:
        if self._detached is not None:
            for name, parameter in self._detached.items():
                holder, _, key = name.rpartition(".")
                place = self._module.get_submodule(holder) if holder else self._module
                self._put(place._parameters, key, parameter.detach())  # noqa: SLF001
            return
        for module in self._module.modules():
            for name, held in module._parameters.items():  # noqa: SLF001
                if id(held) in self._values:
                    self._put(module._parameters, name, self._values[id(held)])  # noqa: SLF001
            if isinstance(module, nn.RNNBase):  # because it keeps its parameters a second time
                flat: Any = module._flat_weights  # noqa: SLF001
                given = [self._values.get(id(weight), weight) for weight in flat]
                self._put(vars(module), "_flat_weights", given)

    def __exit__(self, *_: object) -> None:
        while self._before:
            holder, name, value = self._before.pop()
            holder[name] = value

    def _put(self, holder: dict[str, Any], name: str, value: Any) -> None:
        self._before.append((holder, name, holder[name]))
        holder[name] = value
