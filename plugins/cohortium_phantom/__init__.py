"""Made-up blood cells: a data set without download and without patients.

>>> splits = Phantom(examples=16, validation=0, test=8).load()
>>> splits.train.images.shape
(16, 3, 28, 28)

A model trained on them says nothing about real blood.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal

import numpy as np
from attrs import evolve, field, frozen
from attrs.validators import ge, le, lt

from cohortium.plugin import (
    Dataset,
    Examples,
    Multiclass,
    Offer,
    Seeds,
    Splits,
    hookimpl,
    make_task,
)
from cohortium_phantom._draw import CELL_TYPES, SIDE, draw, draw_masks

if TYPE_CHECKING:
    from numpy.typing import NDArray

COHORTIUM_API = 1

CELLS = 4
"""Cells of a field."""

PARTS = ("smear", "cytoplasm", "nucleus")
"""Classes of a mask's pixels."""

MAX_IMAGES = 10_000_000
"""Most images of a part.  More would take days to draw."""


@frozen(kw_only=True)
class Phantom:
    """Images of eight types of cell, 3 channels of 28×28 pixels.

    They are drawn from a seed.  The types are balanced: in a split, no type has more than one
    example more than another.  Each split is drawn from a stream of its own.  So changing one split
    does not change the others.

    Attributes:
        examples: Number of training examples.
        validation: Number of validation examples.  None if 0.
        test: Number of test examples.  None if 0.
        images_per_patient: Number of consecutive training examples that are assigned to one
            patient. 0 assigns no patients.
        centres: Number of centres, to which the images of each split are assigned in turn. 0
            assigns none. The images do not depend on it.
        seed: Seed of the images.  Equal seeds give equal images.
    """

    examples: int = field(default=6000, validator=[ge(1), le(MAX_IMAGES)])
    validation: int = field(default=1000, validator=[ge(0), le(MAX_IMAGES)])
    test: int = field(default=2000, validator=[ge(0), le(MAX_IMAGES)])
    images_per_patient: int = field(default=0, validator=[ge(0), le(MAX_IMAGES)])
    centres: int = field(default=0, validator=[ge(0), le(MAX_IMAGES)])
    seed: int = field(default=0, validator=[ge(0), lt(1 << 63)])

    def load(self) -> Splits:
        """Draw the images."""
        # Each split has a generator of its own, and NumPy computes outside the interpreter's lock.
        with ThreadPoolExecutor(3) as threads:
            train = threads.submit(self._examples, "train", self.examples)
            validation = threads.submit(self._examples, "validation", self.validation)
            test = threads.submit(self._examples, "test", self.test)
        return Splits(
            name="phantom",
            task=Multiclass(CELL_TYPES),
            train=self._with_patients(train.result()),
            validation=validation.result() if self.validation else None,
            test=test.result() if self.test else None,
            source="procedural, drawn from a seed; no patient",
        )

    def _with_patients(self, train: Examples) -> Examples:
        if not self.images_per_patient:
            return train
        patients: NDArray[np.int64] = np.arange(self.examples) // self.images_per_patient
        return evolve(train, patients=patients)

    def _examples(self, split: str, number: int) -> Examples:
        rng = Seeds(self.seed).generator(f"phantom {split}")
        labels: NDArray[np.int64] = rng.permutation(np.arange(number) % len(CELL_TYPES))
        clients = np.arange(number) % self.centres if self.centres else None
        return Examples(draw(labels, rng), labels, clients)


@frozen(kw_only=True)
class PhantomFields:
    """Fields of four made-up cells, 3 channels of 56×56 pixels.

    The types of the four cells are drawn independently.

    Attributes:
        labels: "findings" are the types that occur in a field, several at once.  "masks" have a
            class for each pixel: smear, cytoplasm or nucleus.
        examples: Number of training fields.
        validation: Number of validation fields.  None if 0.
        test: Number of test fields.  None if 0.
        seed: Seed of the fields.  Equal seeds give equal fields.
    """

    labels: Literal["findings", "masks"] = "findings"
    examples: int = field(default=3000, validator=[ge(1), le(MAX_IMAGES)])
    validation: int = field(default=300, validator=[ge(0), le(MAX_IMAGES)])
    test: int = field(default=600, validator=[ge(0), le(MAX_IMAGES)])
    seed: int = field(default=0, validator=[ge(0), lt(1 << 63)])

    def load(self) -> Splits:
        """Draw the fields."""
        is_findings = self.labels == "findings"
        return Splits(
            name="phantom fields",
            task=make_task("multilabel", names=list(CELL_TYPES))
            if is_findings
            else make_task("segmentation", names=list(PARTS)),
            train=self._examples("train", self.examples),
            validation=self._examples("validation", self.validation) if self.validation else None,
            test=self._examples("test", self.test) if self.test else None,
            source="procedural, drawn from a seed; no patient",
        )

    def _examples(self, split: str, number: int) -> Examples:
        rng = Seeds(self.seed).generator(f"phantom fields {split}")
        types = rng.integers(0, len(CELL_TYPES), (number, CELLS))
        images, masks = draw_masks(types.reshape(-1), rng)
        fields = _tiled(images.reshape(number, CELLS, 3, SIDE, SIDE))
        if self.labels == "masks":
            return Examples(fields, _tiled(masks.reshape(number, CELLS, 1, SIDE, SIDE))[:, 0])
        present = (types[:, :, None] == np.arange(len(CELL_TYPES))).any(1)
        return Examples(fields, present.astype(np.int8))


def _tiled(tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return fields, shape (N, C, 2S, 2S), of four tiles each, shape (N, 4, C, S, S)."""
    count, _, channels, side, _ = tiles.shape
    grid = tiles.reshape(count, 2, 2, channels, side, side)
    return grid.transpose(0, 3, 1, 4, 2, 5).reshape(count, channels, 2 * side, 2 * side)


@hookimpl
def cohortium_datasets() -> list[Offer[Dataset]]:
    """Offer `phantom` and `phantom-fields`."""
    fields = "Fields of four such cells, with findings or masks."
    return [
        Offer("phantom", Phantom, "Procedural blood cells of eight types; no download."),
        Offer("phantom-fields", PhantomFields, fields),
    ]
