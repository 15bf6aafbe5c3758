"""Layers of a network with trainable parameters, and their rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import frozen
from torch import nn

from cohortium.clipping.linear_conv import RULES, ParametrizedCall
from cohortium.clipping.normalization_embedding import EmbeddingCall, GroupNormCall, LayerNormCall

if TYPE_CHECKING:
    from torch import Tensor

    from cohortium.clipping.layer_call import LayerCall


@frozen
class Layer:
    """A layer that uses trainable parameters.

    Attributes:
        name: Name in its network.
        module: The layer.
        parameters: Parameters that it uses itself, by name.
        kind: The rule for it, or None where there is none.
    """

    name: str
    module: nn.Module
    parameters: list[tuple[str, nn.Parameter]]
    kind: type[LayerCall] | None

    @property
    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """Its trainable parameters."""
        return [(name, p) for name, p in self.parameters if p.requires_grad]

    def fold(self, rows: Tensor) -> Tensor:
        """Return rows as the layer's own batch, for the rule."""
        assert self.kind is not None
        return self.kind.fold(self.module, rows)

    def reused_tensors(self, node: Any) -> tuple[Tensor, ...]:
        """Return torch's saved tensors of a call that the rule reuses.

        Args:
            node: The call's node of autograd.
        """
        return () if self.kind is None else self.kind.reused_tensors(node)


def find_parameter_layers(net: nn.Module) -> list[Layer]:
    """Return the layers of a network that use trainable parameters."""
    named = dict(net.named_modules())
    inner = [f"{n}.parametrizations".lstrip(".") for n, layer in named.items()
             if nn.utils.parametrize.is_parametrized(layer)]  # fmt: skip
    return [
        Layer(name, layer, parameters, _kind_of(layer, parameters))
        for name, layer in named.items()
        if not any(name == i or name.startswith(f"{i}.") for i in inner)
        for parameters in [own_parameters(layer)]
        if any(p.requires_grad for _, p in parameters)
    ]


def _kind_of(
    layer: nn.Module, parameters: list[tuple[str, nn.Parameter]]
) -> type[LayerCall] | None:
    """Return the rule for a layer's exact class.

    A subclass may behave differently.
    """
    kinds = RULES | {
        nn.GroupNorm: GroupNormCall,
        nn.LayerNorm: LayerNormCall,
        nn.Embedding: EmbeddingCall,
    }
    names = {name for name, _ in parameters}
    if names <= {"weight", "bias"}:
        return None if _mixes_gradients(layer) else kinds.get(type(layer))
    if names <= {"parametrizations.weight.original", "bias"}:
        # A parametrization with buffers, such as a spectral norm, would update them once more.
        is_pure = not list(layer.parametrizations.buffers())  # type: ignore[union-attr]
        if is_pure and nn.utils.parametrize.type_before_parametrizations(layer) in RULES:
            return ParametrizedCall
    return None


def _mixes_gradients(layer: nn.Module) -> bool:
    """Return whether an option scales gradients by counts over the batch."""
    return bool(getattr(layer, "scale_grad_by_freq", False))


def own_parameters(layer: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters that a layer itself uses.

    These are its own, and those from which its own are computed.
    """
    own = [(n, p) for n, p in layer._parameters.items() if p is not None]  # noqa: SLF001
    if nn.utils.parametrize.is_parametrized(layer):
        parts = layer.parametrizations.named_parameters(prefix="parametrizations")  # type: ignore[union-attr]
        own += parts
    return own
