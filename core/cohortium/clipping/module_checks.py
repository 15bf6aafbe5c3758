"""Checks of a network's modules before a mapped pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from cohortium.clipping.pass_checks import UntrackedGradientError
from cohortium.errors import PrivacyError

if TYPE_CHECKING:
    from cohortium.clipping.registry import Layer


def has_hooks(module: nn.Module) -> bool:
    """Return whether hooks run before or after the module's own code."""
    own = (
        module._forward_pre_hooks, module._forward_hooks,  # noqa: SLF001
        module._backward_hooks, module._backward_pre_hooks,  # noqa: SLF001
    )  # fmt: skip
    is_global: bool = nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]  # noqa: SLF001
    return is_global or any(own)


def require_no_gradient_hook(net: nn.Module) -> None:
    """Refuse a network with hooks that alter its parameters' gradients.

    The caller then runs its examples one by one.
    """
    for name, parameter in net.named_parameters():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:  # noqa: SLF001
            raise UntrackedGradientError(f"parameter '{name}' has a hook on its gradient")


def require_constant_weights(layer: Layer) -> None:
    """Refuse a layer that alters its own weights by its inputs."""
    if getattr(layer.module, "max_norm", None) is not None:
        raise PrivacyError(
            f"layer '{layer.name}' rescales its weights by the rows that the examples look up, "
            "which no noise covers; leave out its option 'max_norm'."
        )
