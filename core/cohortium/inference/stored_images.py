"""The form of stored images that a trained model takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cohortium.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cohortium.data.examples import DataSpec


def require_stored_form(images: NDArray[Any], spec: DataSpec) -> None:
    """Refuse images of another type or shape than those on which a model was trained.

    Args:
        images: Stored images, shape (N, C, …).
        spec: Public facts about the images of the training.

    Raises:
        DataError: They are such images.
    """
    if images.dtype != spec.pixel_type or images.shape[1:] != spec.shape:
        raise DataError(
            f"the model takes {spec.pixel_type} images of shape {spec.shape}, channels first, "
            f"not {images.dtype} of shape {images.shape[1:]}."
        )
