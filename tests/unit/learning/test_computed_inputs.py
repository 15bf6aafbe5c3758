"""Features in memory, which networks of parts of a set share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from attrs import field, frozen
from torch import Tensor

from cohortium.data.examples import DataSpec
from cohortium.learning.preprocessing import ComputedInputs, preprocess
from cohortium.plugin import Multiclass

SPEC = DataSpec(channels=1, size=(8, 8), task=Multiclass(("a", "b")), examples=6)


@frozen
class Counted:
    """A model whose inputs are the images' means, or the images."""

    flat: bool = True
    seen: list[int] = field(factory=list, eq=False)

    def preprocess(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        return images.mean((2, 3)) if self.flat else images


@pytest.fixture
def images() -> Any:
    return np.random.default_rng(1).integers(0, 256, (6, 1, 8, 8), dtype=np.uint8)


def test_parts_of_a_set_are_not_computed_again(images: Any) -> None:
    model: Any = Counted()
    known = ComputedInputs.of(model, images, SPEC)
    expected = preprocess(model, images, SPEC)
    del model.seen[:]
    for part in ([0, 1, 2, 3, 4, 5], [4, 1], [3]):
        found = preprocess(model, images[part], SPEC, known)
        assert torch.equal(found, expected[part])
    assert model.seen == []
    # What a network writes into its inputs does not reach the others.
    preprocess(model, images[:2], SPEC, known).zero_()
    assert torch.equal(preprocess(model, images[:2], SPEC, known), expected[:2])


def test_other_images_models_and_forms_are_computed(images: Any) -> None:
    model: Any = Counted()
    known = ComputedInputs.of(model, images[:4], SPEC)
    del model.seen[:]
    assert torch.equal(preprocess(model, images[3:], SPEC, known), images_mean(images[3:]))
    assert model.seen == [3]
    other: Any = Counted(flat=False)
    assert preprocess(other, images[:2], SPEC, known).shape == (2, 1, 8, 8)
    whole = ComputedInputs.of(other, images, SPEC)
    assert whole.inputs is None
    assert preprocess(other, images[:2], SPEC, whole).shape == (2, 1, 8, 8)


def images_mean(images: Any) -> Tensor:
    return Counted().preprocess(torch.from_numpy(images / np.float32(255)))
