"""Scores of a classifier on public images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from attrs import field, frozen

if TYPE_CHECKING:
    from numpy.typing import NDArray

BINS = 10
"""Number of bins, of equal width, that compare confidence with accuracy."""


@frozen(kw_only=True)
class ClassScores:
    """Scores of one class against the rest.

    Attributes:
        name: Name of the class.
        examples: Number of its images.
        sensitivity: Share of its images that were predicted as this class, or None without images.
        specificity: Share of the other images that were not predicted as it, or None without
            others.
        precision: Share of the images predicted as this class that have it, or None if none was.
        auc: Area under the ROC curve of this class against the rest, or None without both.
    """

    name: str
    examples: int
    sensitivity: float | None
    specificity: float | None
    precision: float | None
    auc: float | None


@frozen(kw_only=True)
class CalibrationBin:
    """Images for which a classifier had about equal confidence in its prediction.

    Attributes:
        low: Lower limit of the predicted class's probability, exclusive. The first bin includes 0,
            too.
        high: Upper limit of that probability, inclusive.
        examples: Number of images in the bin.
        confidence: Their mean probability of the predicted class, or None without images.
        accuracy: Share of them that are predicted correctly, or None without images.
    """

    low: float
    high: float
    examples: int
    confidence: float | None
    accuracy: float | None


@frozen(kw_only=True)
class Scores:
    """Scores of a classifier.

    Attributes:
        accuracy: Share of images that are predicted correctly.
        balanced_accuracy: Mean sensitivity over the classes that occur.
        auc: Mean over the classes of the area under the ROC curve, one against the rest. None if no
            class has both.
        loss: Mean cross-entropy in nats.
        per_class: One row per class.
        confusion: Confusion matrix: `confusion[i][j]` images of class i were predicted as j.
        calibration: Bins of equal width over the probability of the predicted class.
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
        """Number of scored images."""
        return sum(map(sum, self.confusion))

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of images of each class."""
        return tuple(map(sum, self.confusion))

    @property
    def majority_class(self) -> str:
        """The most frequent class, or the first of several."""
        counts = self.counts
        return self.per_class[counts.index(max(counts))].name

    @property
    def majority_share(self) -> float:
        """The accuracy of always predicting the most frequent class."""
        return max(self.counts) / self.images if self.images else 0.0

    @property
    def inconsistency(self) -> str:
        """The first impossible relation among the scores, or "" without one."""
        classes, total = len(self.per_class), sum(map(sum, self.confusion))
        if any(len(row) != classes for row in (self.confusion, *self.confusion)):
            return "its confusion matrix is not square"
        shares = [self.accuracy, self.balanced_accuracy, self.auc]
        shares += [s for c in self.per_class for s in (c.sensitivity, c.specificity, c.precision)]
        shares += [each.auc for each in self.per_class]
        shares += [share for part in self.calibration for share in (part.confidence, part.accuracy)]
        counts = [c for row in self.confusion for c in row] + [c.examples for c in self.per_class]
        if any(s is not None and not 0 <= s <= 1 for s in shares) or min(counts, default=0) < 0:
            return "its scores are outside the range of scores"
        right = sum(row[index] for index, row in enumerate(self.confusion))
        if total and not math.isclose(self.accuracy, right / total, abs_tol=1e-6):
            return "its accuracy is not that of its confusion matrix"
        return ""

    @property
    def calibration_error(self) -> float | None:
        """The expected calibration error: mean distance of confidence and accuracy.

        The mean is over the bins, weighted by their images (Naeini et al. 2015, and Guo et al.
        2017, equation 3). It is None if nothing was binned.
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
    """A classifier's predictions for each image.

    Attributes:
        probabilities: Probabilities, shape (N, classes), N > 0.
        labels: True labels of the images, shape (N,).
        classes: Names of the classes.
    """

    probabilities: NDArray[np.floating] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    classes: tuple[str, ...]

    @property
    def scores(self) -> Scores:
        """Scores of the predictions."""
        return score(self.probabilities, self.labels, self.classes)


def score(
    probabilities: NDArray[np.floating], labels: NDArray[np.int64], classes: tuple[str, ...]
) -> Scores:
    """Return the scores of `probabilities` against `labels`.

    `probabilities` has the shape (N, classes), and `labels` the shape (N,), N > 0. If a network's
    outputs have overflowed, a NaN counts as probability 0.
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
    """Return `confidence`, shape (N,), and `right` predictions in `BINS` bins."""
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
    """Return the 95 % confidence interval of a share (Wilson 1927).

    The share was seen in `hits` of `trials`.

    Args:
        hits: Number of successes.
        trials: Number of trials, more than 0.
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
    """Return the Mann-Whitney statistic over its maximum. Ties count half."""
    n1 = int(positive.sum())
    n0 = len(positive) - n1
    if not n1 or not n0:
        return None
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    ranks = (ends - (counts - 1) / 2)[place]
    return float((ranks[positive].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))
