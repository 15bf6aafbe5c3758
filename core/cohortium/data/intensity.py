"""Stored intensities as the numbers in [0, 1] that models take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from cohortium.data.examples import DataSpec


def to_unit_range(images: NDArray[Any], spec: DataSpec) -> Tensor:
    """Return images as `float32` in [0, 1], in new memory.

    The declared range of intensities becomes [0, 1]. Values beyond it become 0 or 1.

    Args:
        images: Stored images, shape (N, C, …).
        spec: Public facts about the data, with the declared range.
    """
    import torch

    low, high = spec.intensity_range
    # Torch warns of arrays that cannot be written, such as mapped ones.
    held = images if images.flags.writeable else images.copy()
    scaled = torch.from_numpy(held).to(torch.float32, copy=True)
    if low:
        scaled.sub_(low)
    scaled.div_(high - low)
    if (images.dtype.name, low, high) != ("uint8", 0, 255):
        scaled.clamp_(0, 1)
    return scaled
