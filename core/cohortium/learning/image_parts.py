"""Shares of the parts of an image, from a model that has learned them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohortium.errors import StudyError

if TYPE_CHECKING:
    from torch import Tensor

    from cohortium.roles.protocols import Model

PLANES = 4
"""Axes of the shares: images, parts, height and width."""


def part_shares(parts: Model, images: Tensor, *, model: str) -> Tensor:
    """Return the shares of K parts in each pixel, (N, K, H, W), of images (N, C, H, W).

    Args:
        parts: A model whose prepared images are these shares, such as `pretrained` on images with
            masks.
        images: Images in [0, 1].
        model: Name of the model that asks for them, for the error.

    Raises:
        StudyError: The model of the parts gives another shape.
    """
    shares = parts.preprocess(images)
    if shares.ndim != PLANES or shares.shape[2:] != images.shape[2:]:
        raise StudyError(
            f"model '{model}': parts must give the shares of parts in each pixel, (images, "
            f"parts, height, width), of images of shape {tuple(images.shape)}, and gave "
            f"{tuple(shares.shape)}; use 'pretrained' on images with masks."
        )
    return shares
