"""The number of axes of images that a model takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cohortium.errors import StudyError

if TYPE_CHECKING:
    from collections.abc import Sequence

PLANE: Final = 2
"""Axes of an image with height and width."""


def require_two_axes(size: Sequence[int], *, model: str) -> None:
    """Refuse volumes, for a model of images with height and width.

    Args:
        size: Size of an image along each axis, as in `images.shape[2:]`.
        model: Name of the model's plugin.

    Raises:
        StudyError: The images have another number of axes.
    """
    if len(size) != PLANE:
        raise StudyError(
            f"model '{model}' takes images of {PLANE} axes, and these have {len(size)}; use 'cnn', "
            "'dpresnet' or 'resnet18' for volumes, or 'unet' if their labels are masks."
        )
