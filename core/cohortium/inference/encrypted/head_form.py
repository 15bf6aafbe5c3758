"""Two forms of a served head: the numbers that a clinic encrypts, and the logits from an answer.

A **linear head** takes the features x. Its answer is W·x + b.

A **whitened head** has the logits A·M·x/‖M·x‖ + b (see `PrivateWhiteningHead`). Its squared norm is
xᵀ·MᵀM·x, which is linear in the products of two features. So the clinic encrypts these, too, and
the owner's part is still one linear layer: its outputs are A·M·x and the squared norm over ‖x‖. The
clinic divides, and adds the biases, which the owner's description has. These logits are the same
for every multiple of x. So the clinic scales x to the norm `WHITENED_NORM` before it encrypts, and
the flooding is equally small for every image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

import numpy as np
from attrs import field, frozen

from cohortium.inference.encrypted.protocol import MAX_NORM

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cohortium.messages.encrypted import ServiceDescription

WHITENED_NORM: Final = MAX_NORM / 2
"""Norm of the features that are encrypted for a whitened head, and a bound of their products'."""


@frozen
class HeadForm:
    """The form of a head.

    Attributes:
        features: D, the number of features of an image.
        classes: K, the number of logits.
        bias: The K biases of a whitened head. It is empty for a linear head.
    """

    features: int
    classes: int
    bias: tuple[float, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, description: ServiceDescription) -> Self:
        """Return the form that a service describes."""
        return cls(description.features, description.classes, tuple(description.bias))

    @property
    def is_whitened(self) -> bool:
        """Whether the head divides by a norm."""
        return bool(self.bias)

    @property
    def inputs(self) -> int:
        """Number of numbers that a clinic encrypts for an image."""
        products = self.features * (self.features + 1) // 2
        return self.features + products * self.is_whitened

    @property
    def outputs(self) -> int:
        """Number of encrypted numbers in the answer for an image."""
        return self.classes + self.is_whitened

    def encode(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the numbers to encrypt for an image with features of shape (D,).

        For a whitened head the features are scaled to `WHITENED_NORM`, and their products follow.
        These are divided by that norm, so that their own norm is at most as large.
        """
        if not self.is_whitened:
            return features
        # Division first, because the factor of a tiny norm would be infinite.
        scaled = features / (float(np.linalg.norm(features)) or 1.0) * WHITENED_NORM
        first, second = np.triu_indices(self.features)
        return np.concatenate([scaled, scaled[first] * scaled[second] / WHITENED_NORM])

    def logits(
        self, outputs: NDArray[np.float64], features: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the K logits for an image.

        Args:
            outputs: The decrypted answer.
            features: The image's features, shape (D,).
        """
        if not self.is_whitened:
            return outputs
        bias = np.array(self.bias)
        if not np.linalg.norm(features):
            return bias  # the outputs are noise alone
        # The owner may lie, or noise may exceed a norm near zero.
        norm = max(float(outputs[-1]) * WHITENED_NORM, 1e-12) ** 0.5
        found: NDArray[np.float64] = outputs[:-1] / norm + bias
        return found
