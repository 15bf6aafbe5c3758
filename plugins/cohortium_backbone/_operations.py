"""The operations that a program may use.

They compute tensors from tensors. None reads a file, draws a random number or starts a process.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

PREFIX: Final = "torch.ops.aten."

_NAMES: Final = """
    linear addmm mm bmm baddbmm matmul einsum
    conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d
    batch_norm _native_batch_norm_legit_no_training group_norm native_group_norm layer_norm
    native_layer_norm rms_norm local_response_norm linalg_vector_norm

    relu relu_ relu6 relu6_ hardtanh hardtanh_ hardswish hardswish_ hardsigmoid hardsigmoid_ silu
    silu_ gelu gelu_ elu elu_ celu celu_ selu selu_ leaky_relu leaky_relu_ prelu _prelu_kernel
    sigmoid sigmoid_ tanh tanh_ softplus mish mish_ softmax _softmax log_softmax _log_softmax glu
    log_sigmoid threshold threshold_ clamp clamp_ clamp_min clamp_min_ clamp_max clamp_max_
    scaled_dot_product_attention

    max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d

    view reshape _unsafe_view view_as reshape_as flatten unflatten permute transpose t numpy_T
    movedim squeeze unsqueeze expand expand_as slice select split split_with_sizes chunk unbind
    narrow cat concat stack pad constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d
    replication_pad2d roll flip repeat tile contiguous clone alias detach detach_ lift_fresh_copy
    pixel_shuffle pixel_unshuffle channel_shuffle index_select gather index embedding meshgrid

    add add_ sub sub_ rsub mul mul_ div div_ neg abs sqrt rsqrt pow exp log reciprocal square mean
    sum var var_mean std amax amin max min maximum minimum erf sin cos where floor ceil round sign
    floor_divide remainder cumsum
    eq ne lt gt le ge logical_not logical_and logical_or bitwise_not masked_fill

    zeros ones full arange zeros_like ones_like full_like new_zeros new_ones new_full scalar_tensor
    tril triu
    _to_copy to type_as
    upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa
    _upsample_bicubic2d_aa
    dropout dropout_ feature_dropout alpha_dropout
"""

ALLOWED: Final = frozenset(_NAMES.split())

IGNORED: Final = frozenset({
    "torch.ops.aten._assert_scalar.default",
    "torch.ops.aten._assert_tensor_metadata.default",
    "torch.ops.aten.sym_constrain_range_for_size.default",
    "torch.ops.aten.sym_constrain_range.default",
})  # fmt: skip
"""Checks of sizes, which return nothing."""


def _size(tensor: Tensor, axis: int) -> int:
    """Return a size, which torch's own operation does not in a mapped call."""
    return tensor.shape[axis]


def _attention(*arguments: Any, **options: Any) -> Tensor:
    """Return attention from its definition, which torch can map over examples.

    Torch's fast kernels are called for one example after another there.
    """
    import torch

    found: Tensor = torch.ops.aten._scaled_dot_product_attention_math(*arguments, **options)[0]  # noqa: SLF001
    return found


_SCALARS: Final = (
    "add",
    "sub",
    "mul",
    "floordiv",
    "mod",
    "neg",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
)

SCALARS: Final[Mapping[str, Callable[..., Any]]] = {
    "torch.ops.aten.sym_size.int": _size,
    **{f"_operator.{name}": getattr(operator, name) for name in _SCALARS},
}
"""Operations on sizes.  All of their arguments are positional."""

SUBSTITUTES: Final[Mapping[str, Callable[..., Any]]] = {
    "torch.ops.aten.scaled_dot_product_attention.default": _attention,
}
"""Functions with the arguments and results of an operation, that replace it."""

TRAINING_FLAGS: Final = frozenset({"train", "training", "use_input_stats"})
"""Arguments that are true where an operation depends on the batch, or draws."""

STANDARDISATIONS: Final = frozenset({"torch.ops.aten.batch_norm.default"})
"""Operations that may have such a flag where they see no image."""

NORM_WEIGHTS: Final = frozenset({"weight", "bias"})
NORMALISATIONS: Final = frozenset({
    "batch_norm", "_native_batch_norm_legit_no_training", "group_norm", "native_group_norm",
    "layer_norm", "native_layer_norm", "rms_norm",
})  # fmt: skip
CONVOLUTIONS: Final[Mapping[str, int]] = {"conv1d": 1, "conv2d": 2, "conv3d": 3}
"""Convolutions by name, with the number of axes of their images."""


@frozen(eq=False)
class Operation:
    """An operation, and its arguments in their order.

    Attributes:
        call: The operation.
        arguments: Whether each argument may be given by position.  None where all are given so.
    """

    call: Callable[..., Any]
    arguments: Mapping[str, bool] | None = None

    def num_positional(self, given: Mapping[str, Any]) -> int | None:
        """Return how many of the arguments are given by position.

        None if the operation has not all of them.
        """
        if self.arguments is None:
            return len(given)
        if given.keys() - self.arguments.keys():
            return None
        for i, (name, own) in enumerate(zip(given, self.arguments, strict=False)):
            if name != own or not self.arguments[own]:
                return i
        return len(given)


def base_name(target: str) -> str:
    """Return the name of an operation without its overload.

    >>> base_name("torch.ops.aten.add_.Tensor")
    'add_'
    """
    return target.removeprefix(PREFIX).partition(".")[0]


def find_operation(target: str) -> Operation | None:
    """Return the operation of that name, or None where a program may not use it."""
    import torch

    if target in SCALARS:
        return Operation(SCALARS[target])
    name, dot, overload = target.removeprefix(PREFIX).partition(".")
    if not target.startswith(PREFIX) or name not in ALLOWED or not dot:
        return None
    packet = getattr(torch.ops.aten, name, None)
    if packet is None or overload not in packet.overloads() or overload.endswith("out"):
        return None
    known = getattr(packet, overload)
    arguments = {each.name: not each.kwarg_only for each in known._schema.arguments}  # noqa: SLF001
    return Operation(SUBSTITUTES.get(target, known), arguments)
