"""Scores of a classifier on public images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from attrs import field, frozen

if TYPE_CHECKING:
    from numpy.typing import NDArray

BINS = 10
"""Of equal width, in which confidence is held against accuracy."""


@frozen(kw_only=True)
class ClassScores:
    """One class against the rest.

    Attributes:
        name: The class.
        examples: Images of it.
        sensitivity: Share of its images that were called so; None without images.
        specificity: Share of the other images that were not called so; None without others.
        precision: Share of the images called so that were; None if none was.
        auc: Area under the ROC curve of this class against the rest; None without both.
    """

    name: str
    examples: int
    sensitivity: float | None
    specificity: float | None
    precision: float | None
    auc: float | None


@frozen(kw_only=True)
class CalibrationBin:
    """The images on which a classifier was about equally sure of what it called them.

    Attributes:
        low: Probability above which the called class's lies; the first bin holds 0, too.
        high: Probability that it does not exceed.
        examples: Images in the bin.
        confidence: Their mean probability of the called class; None without images.
        accuracy: Share of them called rightly; None without images.
    """

    low: float
    high: float
    examples: int
    confidence: float | None
    accuracy: float | None


@frozen(kw_only=True)
class Scores:
    """How well a classifier does.

    Attributes:
        accuracy: Share of images called rightly.
        balanced_accuracy: Mean sensitivity over the classes that occur.
        auc: Mean over the classes of the area under the ROC curve, one against the rest; None
            where no class has both.
        loss: Mean cross-entropy in nats.
        per_class: One row a class.
        confusion: `confusion[i][j]` images of class i were called j.
        calibration: Bins of equal width over the probability of the called class.
    """

    accuracy: float
    balanced_accuracy: float
    auc: float | None
    loss: float
    per_class: tuple[ClassScores, ...]
    confusion: tuple[tuple[int, ...], ...]
    calibration: tuple[CalibrationBin, ...] = ()

    @property
    def images(self) -> int:
        """How many were scored."""
        return sum(map(sum, self.confusion))

    @property
    def counts(self) -> tuple[int, ...]:
        """Images of each class."""
        return tuple(map(sum, self.confusion))

    @property
    def majority_class(self) -> str:
        """The most frequent class; the first of several."""
        counts = self.counts
        return self.per_class[counts.index(max(counts))].name

    @property
    def majority_share(self) -> float:
        """The accuracy of whoever calls every image the most frequent class."""
        return max(self.counts) / self.images if self.images else 0.0

    @property
    def inconsistency(self) -> str:
        """What cannot be so, whatever was scored; empty where nothing is amiss."""
        classes, total = len(self.per_class), sum(map(sum, self.confusion))
        if any(len(row) != classes for row in (self.confusion, *self.confusion)):
            return "its confusion matrix is not square"
        shares = [self.accuracy, self.balanced_accuracy, self.auc]
        shares += [s for c in self.per_class for s in (c.sensitivity, c.specificity, c.precision)]
        shares += [each.auc for each in self.per_class]
        shares += [share for part in self.calibration for share in (part.confidence, part.accuracy)]
        counts = [c for row in self.confusion for c in row] + [c.examples for c in self.per_class]
        if any(s is not None and not 0 <= s <= 1 for s in shares) or min(counts, default=0) < 0:
            return "its scores are beyond what scores can be"
        right = sum(row[index] for index, row in enumerate(self.confusion))
        if total and not math.isclose(self.accuracy, right / total, abs_tol=1e-6):
            return "its accuracy is not that of its confusion matrix"
        return ""

    @property
    def calibration_error(self) -> float | None:
        """The expected calibration error: mean distance of confidence and accuracy in a bin.

        Weighted by the images in it (Naeini et al. 2015; Guo et al. 2017, equation 3); None where
        nothing was binned.
        """
        total = sum(part.examples for part in self.calibration)
        if not total:
            return None
        return (
            sum(
                part.examples * abs(part.confidence - part.accuracy)
                for part in self.calibration
                if part.confidence is not None and part.accuracy is not None
            )
            / total
        )


@frozen(eq=False)
class Predictions:
    """What a classifier said of each image.

    Attributes:
        probabilities: Shape (N, classes), N > 0.
        labels: What the images are, shape (N,).
        classes: Names of the classes.
    """

    probabilities: NDArray[np.floating] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    classes: tuple[str, ...]

    @property
    def scores(self) -> Scores:
        """How well it did."""
        return score(self.probabilities, self.labels, self.classes)


def score(
    probabilities: NDArray[np.floating], labels: NDArray[np.int64], classes: tuple[str, ...]
) -> Scores:
    """Scores of `probabilities`, shape (N, classes), against `labels`, shape (N,), N > 0.

    Where a network's outputs have overflowed, what is no number counts as no probability.
    """
    probabilities = np.nan_to_num(probabilities)
    called = probabilities.argmax(1)
    k = len(classes)
    confusion = np.bincount(labels * k + called, minlength=k * k).reshape(k, k)
    rows = tuple(
        _class_scores(name, c, confusion, probabilities[:, c], labels == c)
        for c, name in enumerate(classes)
    )
    sensitivities = [row.sensitivity for row in rows if row.sensitivity is not None]
    areas = [row.auc for row in rows if row.auc is not None]
    likelihood = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return Scores(
        accuracy=float((called == labels).mean()),
        balanced_accuracy=float(np.mean(sensitivities)),
        auc=float(np.mean(areas)) if areas else None,
        loss=float(-np.log(likelihood.clip(1e-12)).mean()),
        per_class=rows,
        confusion=tuple(tuple(int(v) for v in row) for row in confusion),
        calibration=_calibration(probabilities.max(1), called == labels),
    )


def _calibration(
    confidence: NDArray[np.floating], right: NDArray[np.bool_]
) -> tuple[CalibrationBin, ...]:
    """`confidence`, shape (N,), beside whether the call was right, in `BINS` bins."""
    place = np.ceil(confidence.clip(0, 1) * BINS).astype(np.int64).clip(1) - 1
    counts = np.bincount(place, minlength=BINS).tolist()
    sure = np.bincount(place, weights=confidence, minlength=BINS).tolist()
    hits = np.bincount(place, weights=right, minlength=BINS).tolist()
    return tuple(
        CalibrationBin(
            low=k / BINS,
            high=(k + 1) / BINS,
            examples=n,
            confidence=sure[k] / n if n else None,
            accuracy=hits[k] / n if n else None,
        )
        for k, n in enumerate(counts)
    )


def interval(hits: int, trials: int, *, z: float = 1.959964) -> tuple[float, float]:
    """Where a share lies of which `hits` of `trials` were seen, at 95 % (Wilson 1927).

    Args:
        hits: Successes.
        trials: Of how many, more than 0.
        z: Standard normal quantile of the level.
    """
    share, spread = hits / trials, z * z / trials
    centre = share + spread / 2
    reach = (spread * (share * (1 - share) + spread / 4)) ** 0.5
    return max(0.0, (centre - reach) / (1 + spread)), min(1.0, (centre + reach) / (1 + spread))


def _class_scores(
    name: str,
    c: int,
    confusion: NDArray[np.int64],
    scores: NDArray[np.floating],
    positive: NDArray[np.bool_],
) -> ClassScores:
    hits = int(confusion[c, c])
    of_class, called, total = confusion[c].sum(), confusion[:, c].sum(), confusion.sum()
    others = total - of_class
    return ClassScores(
        name=name,
        examples=int(of_class),
        sensitivity=hits / int(of_class) if of_class else None,
        specificity=1 - int(called - hits) / int(others) if others else None,
        precision=hits / int(called) if called else None,
        auc=_auc(scores, positive),
    )


def _auc(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float | None:
    """The Mann-Whitney statistic over its maximum; ties count half."""
    n1 = int(positive.sum())
    n0 = len(positive) - n1
    if not n1 or not n0:
        return None
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    ranks = (ends - (counts - 1) / 2)[place]
    return float((ranks[positive].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))
