"""The task of a class for each pixel or voxel, in two and three dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np
from attrs import field, frozen
from attrs.validators import ge, le

from cohortium.plugin import (
    ClassScores,
    DataError,
    Offer,
    Scores,
    Task,
    hookimpl,
    mean_of,
    mean_of_ratios,
    mean_ratio,
    share_ratio,
    valid_names,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from cohortium.plugin import Estimate

COHORTIUM_API = 1

MAX_CLASSES: Final = 256
"""Most classes of a mask, which has 8 bits."""

SMOOTH: Final = 1.0
"""Pixels added to both parts of a soft Dice, so that an absent class has one."""


@frozen
class Segmentation:
    """Each pixel, or voxel, has one of K classes.  Class 0 is the background.

    Outputs are logits of shape (N, K, *size).  Predictions are the most probable class of each
    pixel, shape (N, *size), `uint8`.  Labels have the same form.

    The loss of an image is one value.  Its first part is the mean cross-entropy over the pixels, in
    nats.  Its second part is `dice_weight` times the soft Dice loss.  That is the mean over the
    classes of one minus the soft Dice (Milletari et al. 2016).

    A score of an image is its Dice, 2·|A∩B| / (|A| + |B|), for each class but the background.  If
    neither mask has the class, the image has no Dice for it.

    Attributes:
        names: Names of the classes, with the background first.
        dice_weight: Factor of the soft Dice loss.  0 leaves the cross-entropy alone.
    """

    names: tuple[str, ...] = field(default=(), validator=valid_names)
    dice_weight: float = field(default=1.0, validator=[ge(0), le(1e3)])

    def named(
        self, labels: Mapping[str, NDArray[Any]], names: tuple[str, ...], where: str
    ) -> Segmentation:
        """Return the task with `names`, or with the numbers of the classes."""
        highest = max((int(part.max(initial=0)) for part in labels.values()), default=0)
        given = names or self.names or tuple(map(str, range(highest + 1)))
        if highest >= len(given):
            raise DataError(
                f"{where}: its masks hold class {highest}, and there are {len(given)} names; name "
                "each class, with the background first."
            )
        return attrs.evolve(self, names=given)

    def output_shape(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Return (K, *size)."""
        return (len(self.names), *size)

    def read_labels(
        self, labels: NDArray[Any], images: tuple[int, ...], where: str
    ) -> NDArray[np.uint8]:
        """Return masks of shape (N, *size), or (N, *size, 1), as `uint8`."""
        wanted = (images[0], *images[2:])
        if labels.shape not in {wanted, (*wanted, 1)}:
            raise DataError(
                f"{where} has shape {labels.shape}, and the images {wanted}; save a mask of the "
                "same size for each image."
            )
        if labels.dtype.kind not in "biu":
            raise DataError(f"{where} is {labels.dtype}; save the numbers of classes as uint8.")
        if labels.size and not 0 <= labels.min() <= labels.max() < MAX_CLASSES:
            raise DataError(
                f"{where} has values from {labels.min()} to {labels.max()}; number the classes "
                f"from 0, at most {MAX_CLASSES} of them."
            )
        return np.ascontiguousarray(labels.reshape(wanted), dtype=np.uint8)

    def check_labels(self, labels: NDArray[Any], size: tuple[int, ...]) -> str:
        """Return the fault of masks that are not (N, *size), or hold a class without a name."""
        wanted = (len(labels), *size)
        if labels.dtype != np.uint8 or labels.shape != wanted:
            return f"must be uint8 of shape {wanted}, not {labels.dtype} of shape {labels.shape}"
        if labels.size and labels.max() >= len(self.names):
            return f"must lie in 0…{len(self.names) - 1}, found {labels.max()}"
        return ""

    def sample_labels(
        self, size: tuple[int, ...], count: int, rng: np.random.Generator
    ) -> NDArray[np.uint8]:
        """Return masks of noise, in which each class occurs."""
        return rng.integers(0, len(self.names), (count, *size), dtype=np.uint8)

    def losses(self, outputs: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the cross-entropy plus the weighted soft Dice loss of each image.

        `weights` are factors of the classes in both.
        """
        from torch.nn import functional

        target = labels.long()
        pixels = functional.cross_entropy(outputs, target, weight=weights, reduction="none")
        entropy = pixels.flatten(1).mean(1)
        if not self.dice_weight:
            return entropy
        shares = outputs.softmax(1).flatten(2)
        held = functional.one_hot(target, len(self.names)).flatten(1, -2).transpose(1, 2)
        held = held.to(shares.dtype)
        both = (shares * held).sum(2)
        dice = (2 * both + SMOOTH) / (shares.sum(2) + held.sum(2) + SMOOTH)
        missing = (1 - dice) if weights is None else (1 - dice) * weights
        return entropy + self.dice_weight * missing.mean(1)

    def predict(self, outputs: Tensor) -> Tensor:
        """Return the most probable class of each pixel, shape (B, *size), `uint8`."""
        import torch

        return outputs.argmax(1).to(torch.uint8)

    def score(self, predictions: NDArray[Any], labels: NDArray[Any]) -> Scores:
        """Return the mean Dice and IoU over images and classes, and the share of right pixels."""
        dice, overlap, held = self._overlaps(predictions, labels)
        rows = tuple(
            ClassScores(
                name=name,
                examples=int(held[:, k].sum()),
                metrics={"dice": _mean(dice[:, k]), "iou": _mean(overlap[:, k])},
            )
            for k, name in enumerate(self.names)
        )
        return Scores(
            images=len(labels),
            metrics={
                "dice": mean_of(rows[1:] or rows, "dice"),
                "iou": mean_of(rows[1:] or rows, "iou"),
                "pixel_accuracy": float((predictions == labels).mean()),
            },
            per_class=rows,
        )

    def example_scores(
        self, predictions: NDArray[Any], labels: NDArray[Any]
    ) -> NDArray[np.float64]:
        """Return each image's mean Dice over the classes, or 1 where it has none of them."""
        dice, _, _ = self._overlaps(predictions, labels)
        return np.array([1.0 if (m := _mean(row[1:])) is None else m for row in dice])

    @property
    def score_parts(self) -> tuple[str, ...]:
        """Dice of each class but the background, and the share of right pixels."""
        return ("dice", "pixels")

    def measure(self, part: str, predictions: Tensor, labels: Tensor) -> Tensor:
        """Return a row for each image.

        `dice` has 2 cells for each class, over the root of their number: the image's Dice, and one
        where either mask has the class.
        `pixels` has 2 cells: the share of right pixels, and the share of the others.
        """
        import torch

        guess, truth = predictions.flatten(1), labels.flatten(1)
        if part == "pixels":
            right = (guess == truth).double().mean(1)
            return torch.stack([right, 1 - right], 1)
        parts = []
        for k in self._foreground:
            a, b = guess == k, truth == k
            both, size = (a & b).sum(1).double(), (a.sum(1) + b.sum(1)).double()
            parts += [torch.where(size > 0, 2 * both / size.clamp(min=1), 0.0), (size > 0).double()]
        scaled: Tensor = torch.stack(parts, 1) / len(parts) ** 0.5
        return scaled

    def summarize(self, part: str, sums: NDArray[np.float64], noise: float) -> tuple[Estimate, ...]:
        """Return the mean Dice over images and classes, or the share of right pixels.

        The variance by sampling is the largest that values of this mean can have.
        """
        if part == "pixels":
            return (share_ratio(sums[0], sums[1], noise=noise).estimate("pixel_accuracy"),)
        scale = len(sums) ** 0.5
        ratios = []
        for total, there in (sums * scale).reshape(-1, 2):
            middle = min(max(total / there, 0.0), 1.0) if there > 0 else 0.5
            ratios.append(
                mean_ratio(total, there, noise=noise * scale, spread=middle * (1 - middle))
            )
        pairs = zip(ratios, self._foreground, strict=True)
        each = [ratio.estimate("dice", self.names[k]) for ratio, k in pairs]
        return (mean_of_ratios(ratios, "dice", have_shared_examples=True), *each)

    @property
    def _foreground(self) -> range:
        """Numbers of the classes but the background, or the only class."""
        return range(min(1, len(self.names) - 1), len(self.names))

    def counts(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        """Return the number of images that have each class."""
        flat = labels.reshape(len(labels), -1)
        return np.array([(flat == k).any(1).sum() for k in range(len(self.names))], dtype=np.int64)

    def strata(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        """Return the largest class of each image but the background, or 0 without one."""
        flat = labels.reshape(len(labels), -1)
        sizes = np.stack([(flat == k).sum(1) for k in range(len(self.names))], 1)
        sizes[:, 0] = 0
        return np.asarray(sizes.argmax(1), dtype=np.int64)

    def describe(self, prediction: NDArray[Any]) -> dict[str, Any]:
        """Return the share of pixels of each class."""
        shares = np.bincount(prediction.reshape(-1), minlength=len(self.names)) / prediction.size
        return {"shares": dict(zip(self.names, map(float, shares), strict=True))}

    def _overlaps(
        self, predictions: NDArray[Any], labels: NDArray[Any]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """Return Dice, IoU and presence by image and class, each of shape (N, K).

        NaN stands for a class that neither mask has.
        """
        guess, truth = (part.reshape(len(labels), -1) for part in (predictions, labels))
        dice = np.full((len(labels), len(self.names)), np.nan)
        overlap, held = dice.copy(), np.zeros(dice.shape, bool)
        for k in range(len(self.names)):
            a, b = guess == k, truth == k
            both, size = (a & b).sum(1), a.sum(1) + b.sum(1)
            there = size > 0
            dice[there, k] = 2 * both[there] / size[there]
            overlap[there, k] = both[there] / (size - both)[there]
            held[:, k] = b.any(1)
        return dice, overlap, held


def _mean(values: NDArray[np.float64]) -> float | None:
    """Return the mean of the values that are not NaN, or None without one."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


@hookimpl
def cohortium_tasks() -> list[Offer[Task]]:
    """Offer `segmentation`."""
    return [Offer("segmentation", Segmentation, "One of several classes for each pixel or voxel.")]
