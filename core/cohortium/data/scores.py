"""Scores of predictions, by name, with the parts that reports draw."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np
from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

MAX_POINTS: Final = 65
"""Most points of a ROC curve that are kept."""

BINS = 10
"""Number of bins, of equal width, that compare confidence with accuracy."""

UNBOUNDED: Final = frozenset({"loss"})
"""Metrics that are no shares."""

SIGNED: Final = frozenset({"kappa", "mcc"})
"""Metrics that lie in [-1, 1].  Every other metric lies in [0, 1]."""

DECIMALS: Final = frozenset({"auc", *SIGNED, *UNBOUNDED})
"""Metrics that people write as a decimal number.  The others are percentages."""


@frozen(kw_only=True)
class ClassScores:
    """Scores of one class, finding or tissue against the rest.

    Attributes:
        name: Its name.
        examples: Number of images that have it.
        metrics: Scores by name.  A score is None if the images do not determine it.
    """

    name: str
    examples: int
    metrics: dict[str, float | None] = field(factory=dict)


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
class RocCurve:
    """Receiver operating characteristic of one class against the rest.

    Attributes:
        name: Name of the class.
        points: Shares of false and of true positives, from (0, 0) to (1, 1), for falling
            thresholds. At most `MAX_POINTS`, evenly chosen.
    """

    name: str
    points: tuple[tuple[float, float], ...]


@frozen(kw_only=True)
class GroupScore:
    """Main metric on the images of one centre, or of one value of a group.

    Attributes:
        value: Name of the centre or of the value. "" if it is not stated.
        images: Number of images.
        score: The main metric. None if the images do not determine it.
        low: Lower end of its interval at 95 %, or None without a score.
        high: Upper end of its interval at 95 %, or None without a score.
    """

    value: str
    images: int
    score: float | None
    low: float | None
    high: float | None


@frozen(kw_only=True)
class GroupScores:
    """Main metric by centre, or by the values of one column of groups.

    Attributes:
        name: Name of the column, or "centre".
        is_centre: Whether the rows are the data's own centres.
        rows: One row for each centre or value that has images.
        worst: Position of the worst row (see `group_scores.worst_row`). None if no row is.
        is_below_all: Whether the interval of the worst row lies below the score of all images.
    """

    name: str
    is_centre: bool
    rows: tuple[GroupScore, ...]
    worst: int | None = None
    is_below_all: bool = False

    @property
    def worst_row(self) -> GroupScore | None:
        """The worst row, if one is."""
        return None if self.worst is None else self.rows[self.worst]

    @property
    def inconsistency(self) -> str:
        """The first impossible relation among the rows, or "" without one."""
        for row in self.rows:
            ends = (row.low, row.score, row.high)
            known = [end for end in ends if end is not None]
            if len(known) not in (0, len(ends)) or any(not -1 <= end <= 1 for end in known):
                return "a score of a group is outside the range of scores"
            if known and not known[0] <= known[-1]:
                return "the interval of a group has its ends in the wrong order"
        if self.worst is not None and not (
            0 <= self.worst < len(self.rows) and self.rows[self.worst].score is not None
        ):
            return "its worst group has no score"
        return ""


@frozen(kw_only=True)
class Scores:
    """Scores of a network on images.

    Attributes:
        images: Number of scored images.
        metrics: Scores by name.  The first is the main one, and more of it is better.  A score is
            None if the images do not determine it.
        per_class: One row for each name of the task.
        confusion: Confusion matrix: `confusion[i][j]` images of class i were predicted as j.  Empty
            if an image has several classes.
        calibration: Bins of equal width over the probability of the predicted class.
        curves: ROC curve of each class that has both kinds of images. Scores during a run have
            none.
        majority_share: The accuracy of always predicting the most frequent class. None if an image
            has several classes.
        majority_class: The most frequent class, or the first of several. "" without one.
        groups: The main metric by centre, and by each column of groups. Scores during a run have
            none.
    """

    images: int
    metrics: dict[str, float | None]
    per_class: tuple[ClassScores, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    calibration: tuple[CalibrationBin, ...] = ()
    curves: tuple[RocCurve, ...] = ()
    majority_share: float | None = None
    majority_class: str = ""
    groups: tuple[GroupScores, ...] = ()

    @property
    def main_metric(self) -> str:
        """Name of the main metric."""
        return next(iter(self.metrics))

    @property
    def main(self) -> float:
        """The main metric.  NaN if the images do not determine it."""
        value = self.metrics[self.main_metric]
        return math.nan if value is None else value

    @property
    def loss(self) -> float | None:
        """Mean loss, or None if it was not computed."""
        return self.metrics.get("loss")

    @property
    def inconsistency(self) -> str:
        """The first impossible relation among the scores, or "" without one."""
        classes, total = len(self.per_class), sum(map(sum, self.confusion))
        if not self.metrics:
            return "it has no scores"
        if self.confusion and any(len(row) != classes for row in (self.confusion, *self.confusion)):
            return "its confusion matrix is not square"
        named = [self.metrics, *(row.metrics for row in self.per_class)]
        pairs = [pair for each in named for pair in each.items() if pair[0] not in UNBOUNDED]
        shares = [part.confidence for part in self.calibration]
        shares += [part.accuracy for part in self.calibration]
        shares.append(self.majority_share)
        shares += [share for curve in self.curves for point in curve.points for share in point]
        counts = [c for row in self.confusion for c in row]
        counts += [row.examples for row in self.per_class] + [self.images]
        if (
            any(v is not None and not -(k in SIGNED) <= v <= 1 for k, v in pairs)
            or any(s is not None and not 0 <= s <= 1 for s in shares)
            or min(counts) < 0
        ):
            return "its scores are outside the range of scores"
        accuracy = self.metrics.get("accuracy")
        right = sum(row[index] for index, row in enumerate(self.confusion))
        if (
            total
            and accuracy is not None
            and not math.isclose(accuracy, right / total, abs_tol=1e-6)
        ):
            return "its accuracy is not that of its confusion matrix"
        if total and total != self.images:
            return "its number of images is not that of its confusion matrix"
        return next((fault for part in self.groups if (fault := part.inconsistency)), "")

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


def calibration_bins(
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

    The share was seen in `hits` of `trials`.  The interval holds it: low ≤ hits / trials ≤ high.

    Args:
        hits: Number of successes.
        trials: Number of trials, more than 0.
        z: Standard normal quantile of the level.
    """
    share, spread = hits / trials, z * z / trials
    centre = share + spread / 2
    reach = (spread * (share * (1 - share) + spread / 4)) ** 0.5
    low, high = (centre - reach) / (1 + spread), (centre + reach) / (1 + spread)
    # Rounding puts an end that equals the share, as at 0 and at 1, on either side of it.
    return min(share, max(0.0, low)), max(share, min(1.0, high))


def roc_auc(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float | None:
    """Return the area under the ROC curve, or None without both kinds of examples.

    It is the Mann-Whitney statistic over its maximum. Ties count half.

    Args:
        scores: A score of each example, shape (N,).
        positive: Whether the example is positive, shape (N,).
    """
    n1 = int(positive.sum())
    n0 = len(positive) - n1
    if not n1 or not n0:
        return None
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    ranks = (ends - (counts - 1) / 2)[place]
    return float((ranks[positive].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))


def roc_curve(
    name: str, scores: NDArray[np.floating], positive: NDArray[np.bool_]
) -> RocCurve | None:
    """Return the ROC curve, or None without both kinds of examples.

    Args:
        name: Name of the class.
        scores: A score of each example, shape (N,).
        positive: Whether the example is positive, shape (N,).
    """
    total = int(positive.sum())
    if not 0 < total < len(positive):
        return None
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    hits = np.append(0, positive[order].cumsum()[last])
    alarms = np.append(0, last + 1) - hits
    kept = np.unique(np.linspace(0, len(hits) - 1, MAX_POINTS).round().astype(np.int64))
    true, false = hits[kept] / total, alarms[kept] / (len(positive) - total)
    return RocCurve(name=name, points=tuple(zip(false.tolist(), true.tolist(), strict=True)))


def matthews_correlation(confusion: NDArray[np.int64]) -> float:
    """Return the Matthews correlation coefficient of a confusion matrix (Gorodkin 2004).

    It is 0 if all images, or all predictions, are of one class.
    """
    matrix = confusion.astype(np.float64)
    truth, called, total = matrix.sum(1), matrix.sum(0), matrix.sum()
    spread = (total**2 - called @ called) * (total**2 - truth @ truth)
    covariance = np.trace(matrix) * total - truth @ called
    return float(covariance / math.sqrt(spread)) if spread > 0 else 0.0


def metric_name(metric: str) -> str:
    """Return the name of a metric in a sentence.

    Args:
        metric: Key of the metric in `Scores.metrics`.

    >>> metric_name("balanced_accuracy")
    'balanced accuracy'
    """
    return _ACRONYMS.get(metric, metric.replace("_", " "))


_ACRONYMS: Final[Mapping[str, str]] = MappingProxyType(
    {"auc": "AUC", "brier": "Brier score", "mcc": "MCC", "iou": "IoU", "dice": "Dice"}
)


def mean_of(rows: tuple[ClassScores, ...], metric: str) -> float | None:
    """Return the mean of a metric, or None if no row has it.

    Args:
        rows: Scores by class.
        metric: Key of the metric.
    """
    known = [value for row in rows if (value := row.metrics.get(metric)) is not None]
    return float(np.mean(known)) if known else None


def columns_of(rows: tuple[ClassScores, ...]) -> tuple[str, ...]:
    """Return the names of the metrics in `rows`, each once, in their order."""
    return tuple(dict.fromkeys(name for row in rows for name in row.metrics))
