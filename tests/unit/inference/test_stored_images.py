"""The form of stored images that a model takes."""

from __future__ import annotations

import numpy as np
import pytest

from cohortium.data.examples import DataSpec
from cohortium.data.multiclass import Multiclass
from cohortium.errors import DataError
from cohortium.inference.stored_images import require_stored_form

SPEC = DataSpec(channels=3, size=(4, 6), task=Multiclass(("a", "b")), examples=9)


def test_images_of_the_training_form_are_taken() -> None:
    for number in (0, 1, 5):
        require_stored_form(np.zeros((number, 3, 4, 6), np.uint8), SPEC)


@pytest.mark.parametrize(
    ("shape", "pixel_type"), [((1, 4, 6, 3), "uint8"), ((1, 3, 4, 6), "float32"), ((3, 4, 6), "u1")]
)
def test_images_of_another_form_are_refused(shape: tuple[int, ...], pixel_type: str) -> None:
    images = np.zeros(shape, pixel_type)
    with pytest.raises(DataError) as refused:
        require_stored_form(images, SPEC)
    assert str(refused.value) == (
        f"the model takes uint8 images of shape (3, 4, 6), channels first, not {images.dtype} of "
        f"shape {shape[1:]}."
    )
