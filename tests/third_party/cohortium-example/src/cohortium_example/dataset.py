"""A data set: squares of three colours on a noisy ground."""

from __future__ import annotations

import numpy as np
from attrs import field, frozen
from attrs.validators import ge

from cohortium.plugin import Examples, Multiclass, Seeds, Splits


@frozen(kw_only=True)
class Squares:
    """One square an image, at a random place; the class is its colour.

    Attributes:
        examples: Training examples; a third as many to test on.
        side: Height and width of an image, in pixels.
        seed: Equal seeds, equal images.
    """

    examples: int = field(default=120, validator=ge(3))
    side: int = field(default=8, validator=ge(4))
    seed: int = field(default=0, validator=ge(0))

    def load(self) -> Splits:
        """Draw the images."""
        return Splits(
            name="squares",
            task=Multiclass(("red", "green", "blue")),
            train=self._drawn("train", self.examples),
            test=self._drawn("test", self.examples // 3),
            source="drawn from a seed",
        )

    def _drawn(self, split: str, number: int) -> Examples:
        rng = Seeds(self.seed).generator(f"squares {split}")
        images = rng.integers(0, 64, (number, 3, self.side, self.side), dtype=np.uint8)
        labels = rng.permutation(np.arange(number, dtype=np.int64) % 3)
        for image, label in zip(images, labels, strict=True):
            row, column = rng.integers(0, self.side - 2, 2)
            image[label, row : row + 3, column : column + 3] = 255
        return Examples(images, labels)
