"""Made-up blood cells: a data set without download and without patients.

>>> splits = Phantom(examples=16, validation=0, test=8).load()
>>> splits.train.images.shape
(16, 3, 28, 28)

A model trained on them says nothing about real blood.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from attrs import evolve, field, frozen
from attrs.validators import ge, le, lt

from cohortium.plugin import Dataset, Examples, Multiclass, Offer, Seeds, Splits, hookimpl
from cohortium_phantom._draw import CELL_TYPES, draw

if TYPE_CHECKING:
    from numpy.typing import NDArray

COHORTIUM_API = 1

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
        seed: Seed of the images.  Equal seeds give equal images.
    """

    examples: int = field(default=6000, validator=[ge(1), le(MAX_IMAGES)])
    validation: int = field(default=1000, validator=[ge(0), le(MAX_IMAGES)])
    test: int = field(default=2000, validator=[ge(0), le(MAX_IMAGES)])
    images_per_patient: int = field(default=0, validator=[ge(0), le(MAX_IMAGES)])
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
        return Examples(draw(labels, rng), labels)


@hookimpl
def cohortium_datasets() -> list[Offer[Dataset]]:
    """Offer `phantom`."""
    return [Offer("phantom", Phantom, "Procedural blood cells of eight types; no download.")]
