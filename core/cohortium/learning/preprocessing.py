"""A model's preprocessing of whole image sets, part by part.

The result of a small set is in memory, and of a large one in an unnamed file (see `scratch`). Such
a tensor is used like any other. The operating system reads the parts that a batch needs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from cohortium.data.intensity import to_unit_range
from cohortium.data.scratch import new_array
from cohortium.errors import NetworkError
from cohortium.text import escape_control_characters

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from cohortium.data.examples import DataSpec
    from cohortium.roles.protocols import Model

MAX_WHOLE_BYTES: Final = 1 << 28
"""Largest set, in bytes of its `float32` images, that is one part: 256 MiB."""

PART_BYTES: Final = 1 << 26
"""Size of a part of a larger set, in bytes of its `float32` images: 64 MiB."""


def preprocess(model: Model, images: NDArray[Any], spec: DataSpec) -> Tensor:
    """Return the network's inputs for stored images, shape (N, …).

    Args:
        model: Model whose `preprocess` is fixed and per image.
        images: Stored images, shape (N, C, …), in memory or mapped.
        spec: Public facts about the data.

    Raises:
        NetworkError: The model gives parts of different shapes, or there is no room for them.
    """
    import torch

    image = 4 * math.prod(spec.shape)
    if len(images) * image <= MAX_WHOLE_BYTES:
        return model.preprocess(to_unit_range(images, spec))
    step = max(1, PART_BYTES // image)
    first = model.preprocess(to_unit_range(images[:step], spec))
    shape = (len(images), *first.shape[1:])
    try:
        whole = torch.from_numpy(new_array(shape, first.detach().numpy().dtype))
    except OSError as error:
        raise NetworkError(
            f"there is no room for the inputs of {len(images):,} images in the folder of temporary "
            f"files ({escape_control_characters(str(error.strerror))}); set TMPDIR to another."
        ) from error
    whole[:step] = first
    for start in range(step, len(images), step):
        part = model.preprocess(to_unit_range(images[start : start + step], spec))
        if part.shape[1:] != first.shape[1:]:
            raise NetworkError(
                f"the model's preprocess gives inputs of shape {tuple(part.shape[1:])} after some "
                f"of shape {tuple(first.shape[1:])}; give one shape for all images."
            )
        whole[start : start + step] = part
    return whole
