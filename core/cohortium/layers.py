"""The layers of a network that use trainable parameters, and which rule holds for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen
from torch import nn

from cohortium.products import ConvolutionUse, LinearUse, ParametrizedUse
from cohortium.rules import EmbeddingUse, GroupNormUse, LayerNormUse, TracedUse, owned

if TYPE_CHECKING:
    from cohortium.uses import Use


@frozen
class Layer:
    """A layer that uses trainable parameters.

    Attributes:
        name: In its network.
        module: The layer.
        parameters: What it uses itself, by name.
        kind: Which rule holds for it.
    """

    name: str
    module: nn.Module
    parameters: list[tuple[str, nn.Parameter]]
    kind: type[Use]

    def holders(self) -> list[nn.Module]:
        """The modules that hold its parameters."""
        if not any("." in name for name, _ in self.parameters):
            return [self.module]
        holders = {name.rpartition(".")[0] for name, _ in self.parameters}
        return [self.module.get_submodule(holder) for holder in sorted(holders)]


def using_parameters(net: nn.Module) -> list[Layer]:
    """The layers of a network that use trainable parameters."""
    named = dict(net.named_modules())
    inner = [f"{n}.parametrizations".lstrip(".") for n, layer in named.items()
             if nn.utils.parametrize.is_parametrized(layer)]  # fmt: skip
    return [
        Layer(name, layer, parameters, _kind_of(layer, parameters))
        for name, layer in named.items()
        if not any(name == i or name.startswith(f"{i}.") for i in inner)
        for parameters in [owned(layer)]
        if any(p.requires_grad for _, p in parameters)
    ]


def _kind_of(layer: nn.Module, parameters: list[tuple[str, nn.Parameter]]) -> type[Use]:
    """Which rule holds for a layer: by its very class, since a subclass may do other things."""
    weighing: dict[type[nn.Module], type[Use]] = {
        nn.Linear: LinearUse,
        nn.Conv1d: ConvolutionUse,
        nn.Conv2d: ConvolutionUse,
        nn.Conv3d: ConvolutionUse,
    }
    kinds = weighing | {
        nn.GroupNorm: GroupNormUse,
        nn.LayerNorm: LayerNormUse,
        nn.Embedding: EmbeddingUse,
    }
    names = {name for name, _ in parameters}
    if names <= {"weight", "bias"}:
        return kinds.get(type(layer), TracedUse)
    if names <= {"parametrizations.weight.original", "bias"}:
        # What keeps buffers, such as a spectral norm, would move them once more when it is asked.
        is_pure = not list(layer.parametrizations.buffers())  # type: ignore[union-attr]
        if is_pure and nn.utils.parametrize.type_before_parametrizations(layer) in weighing:
            return ParametrizedUse
    return TracedUse
