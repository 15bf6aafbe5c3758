"""The tensors of a safetensors file that a program uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohortium.plugin import StudyError, escape_control_characters

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from cohortium_backbone._graph import Program


def read_weights(content: bytes, program: Program, *, place: str) -> dict[str, Tensor]:
    """Return the tensors that a program uses, from the content of a safetensors file.

    Floating-point tensors become `float32`.

    Args:
        content: The file's content.
        program: The program.
        place: The file's name in an error.

    Raises:
        StudyError: The content is damaged.  Or a tensor is missing, has another shape or kind, has
            a value that is not finite, or belongs to no part of the program.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        found = load(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        why = escape_control_characters(" ".join(str(error).split()))[:300]
        raise StudyError(
            f"{place} is no whole file of safetensors ({why}); give the weights in that format."
        ) from error
    unknown = sorted(name for name in found if not program.knows(name))
    if unknown:
        shown = escape_control_characters(unknown[0][:200])
        raise StudyError(
            f"{place} has a tensor '{shown}' that the architecture does not; give the weights of "
            "this architecture."
        )
    return _required(found, program, place)


def _required(found: Mapping[str, Tensor], program: Program, place: str) -> dict[str, Tensor]:
    used = {}
    for weight in program.used_weights:
        name = weight.name
        if name in program.made:
            used[name] = program.made[name]
            continue
        tensor = found.get(name)
        if tensor is None:
            raise StudyError(
                f"{place} has no tensor '{name}', which the architecture needs; give the weights "
                "of this architecture."
            )
        if tuple(tensor.shape) != weight.shape:
            raise StudyError(
                f"{place} has '{name}' of shape {list(tensor.shape)}, and the architecture needs "
                f"{list(weight.shape)}; give the weights of this architecture."
            )
        if tensor.is_floating_point() != weight.dtype.is_floating_point:
            raise StudyError(
                f"{place} has '{name}' of type {_kind(tensor.dtype)}, and the architecture needs "
                f"{_kind(weight.dtype)}; give the weights of this architecture."
            )
        if not bool(tensor.isfinite().all()):
            raise StudyError(
                f"{place} has a value in '{name}' that is not finite; give undamaged weights."
            )
        used[name] = tensor.to(weight.dtype).contiguous()
    return used


def _kind(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
