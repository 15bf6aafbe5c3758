"""Main metric by centre and by group, with intervals, and the worst of each.

The images are public, or the site's own: the figures are exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from cohortium.data.groups import MAX_VALUES, NOT_STATED, Grouping
from cohortium.data.scores import SIGNED, GroupScore, GroupScores, interval

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from cohortium.data.examples import Examples
    from cohortium.data.groups import GroupColumn
    from cohortium.data.predictions import Predictions

MIN_IMAGES: Final = 10
"""Number of images from which a group is compared with the others by its score alone."""

REPLICATES: Final = 400
"""Number of resamples of a bootstrap interval."""

MEASURED: Final = 64
"""Number of images that are measured at a time."""

CENTRE: Final = "centre"
"""Name of the data's own centres in figures."""


def score_groups(predictions: Predictions, rng: np.random.Generator) -> tuple[GroupScores, ...]:
    """Return the main metric by centre and by group.

    If the metric is the share of images that are right, intervals are Wilson's. Every other metric
    has the percentile interval of a bootstrap over the group's images (Efron 1979). With fewer than
    `MIN_IMAGES` images such a bootstrap is too narrow, so the interval is the whole range.

    Args:
        predictions: Predictions for the images, with their groupings.
        rng: Source of the bootstrap's resamples.

    Returns:
        The scores of each grouping of `predictions`, in their order.
    """
    interval_of = _Intervals(predictions, rng)
    return tuple(_scored(interval_of, grouping) for grouping in predictions.groupings)


def groupings(
    examples: Examples, columns: Sequence[GroupColumn], centres: Sequence[str]
) -> tuple[Grouping, ...]:
    """Return the images by centre, and by each column of groups.

    Args:
        examples: The images, with their centres and groups.
        columns: The columns of the groups.
        centres: Names of the centres, or () for their numbers.

    Returns:
        The centres, if there are from 2 to `MAX_VALUES` of them, and each column with an image
        whose group is stated. A value without images is left out.
        A column with the name `CENTRE` takes the place of the centres, so that no name is twice.
    """
    found = []
    has_column = examples.groups is not None and any(each.name == CENTRE for each in columns)
    if examples.clients is not None and not has_column:
        numbers, codes = np.unique(examples.clients, return_inverse=True)
        if 1 < len(numbers) <= MAX_VALUES:
            names = tuple(centres[n] if centres else str(n) for n in numbers.tolist())
            found.append(
                Grouping(name=CENTRE, is_centre=True, values=names, codes=codes.reshape(-1))
            )
    for index, column in enumerate(columns if examples.groups is not None else ()):
        assert examples.groups is not None
        codes = examples.groups[:, index]
        if (codes != NOT_STATED).any():
            # Images without a stated group come last.
            last = np.where(codes == NOT_STATED, len(column.values), codes)
            present, places = np.unique(last, return_inverse=True)
            named = (*column.values, "")
            values = tuple(named[k] for k in present.tolist())
            found.append(
                Grouping(name=column.name, is_centre=False, values=values, codes=places.reshape(-1))
            )
    return tuple(found)


def score_images(predictions: Predictions, rng: np.random.Generator) -> GroupScore:
    """Return the main metric of all images, with its interval (see `score_groups`)."""
    return _Intervals(predictions, rng).score("", np.arange(len(predictions.labels)))


def paired_difference(
    first: Predictions,
    second: Predictions,
    patients: NDArray[np.int64] | None,
    rng: np.random.Generator,
) -> GroupScore:
    """Return the main metric of `first` minus that of `second`, on the same images.

    The interval is the percentile interval of a paired bootstrap: both have the same draws, so
    images that both find hard do not widen it. Whole patients are drawn if the images name them.
    With fewer than `MIN_IMAGES` images or patients there is no interval.

    Args:
        first: Predictions for the images.
        second: Other predictions for them.
        patients: The patient of each image, or None.
        rng: Source of the bootstrap's resamples.
    """
    one, other = _Intervals(first, rng), _Intervals(second, rng)
    every = np.arange(len(first.labels))
    owners = every if patients is None else np.unique(patients, return_inverse=True)[1]
    units = [np.flatnonzero(owners == unit) for unit in range(int(owners.max()) + 1)]
    pair = one.drawn_from(every), other.drawn_from(every)

    def minus(drawn: NDArray[np.int64]) -> float | None:
        scores = pair[0](drawn), pair[1](drawn)
        return None if None in scores else (scores[0] or 0.0) - (scores[1] or 0.0)

    if one.whole is None or other.whole is None:
        return GroupScore(value="", images=len(every), score=None, low=None, high=None)
    exact, known = one.whole - other.whole, []
    if len(units) >= MIN_IMAGES:
        for _ in range(REPLICATES):
            chosen = rng.integers(0, len(units), len(units))
            found = minus(np.concatenate([units[unit] for unit in chosen]))
            known += [] if found is None else [found]
    low, high = None, None
    # Resamples without a class have no score. If most are, the images say little.
    if 2 * len(known) >= REPLICATES:
        low, high = np.quantile(known, [0.025, 0.975]).tolist()
    return GroupScore(value="", images=len(every), score=exact, low=low, high=high)


def worst_row(rows: Sequence[GroupScore]) -> int | None:
    """Return the position of the worst row, or None without one.

    Rows of at least `MIN_IMAGES` images are compared by their scores. A smaller row is the worst
    only if its interval lies below the intervals of all other rows that have a score. No row is
    the worst of fewer than two with a score, or if no other row has a higher one.

    >>> few = GroupScore(value="a", images=2, score=0.0, low=0.0, high=0.66)
    >>> many = GroupScore(value="b", images=90, score=0.8, low=0.7, high=0.87)
    >>> worst_row([few, many])
    0
    >>> worst_row([GroupScore(value="a", images=1, score=0.0, low=0.0, high=0.79), many])
    1
    """
    scored = [k for k, row in enumerate(rows) if row.score is not None]
    if len(scored) < 2:  # noqa: PLR2004 - one row is compared with none
        return None
    for k in scored:
        others = [rows[j] for j in scored if j != k]
        if rows[k].images < MIN_IMAGES and all(
            _or_one(rows[k].high) < _or_zero(other.low) for other in others
        ):
            return k
    large = [k for k in scored if rows[k].images >= MIN_IMAGES]
    if not large:
        return None
    worst = min(large, key=lambda k: _or_zero(rows[k].score))
    best = max(_or_zero(rows[k].score) for k in scored)
    return worst if _or_zero(rows[worst].score) < best else None


def _or_zero(value: float | None) -> float:
    return 0.0 if value is None else value


def _or_one(value: float | None) -> float:
    return 1.0 if value is None else value


def _scored(interval_of: _Intervals, grouping: Grouping) -> GroupScores:
    rows = [
        interval_of.score(value, np.flatnonzero(grouping.codes == code))
        for code, value in enumerate(grouping.values)
    ]
    worst = worst_row(rows)
    whole, high = interval_of.whole, None if worst is None else rows[worst].high
    return GroupScores(
        name=grouping.name,
        is_centre=grouping.is_centre,
        rows=tuple(rows),
        worst=worst,
        is_below_all=whole is not None and high is not None and high < whole,
    )


class _Intervals:
    """Scores of parts of the images, with intervals."""

    def __init__(self, predictions: Predictions, rng: np.random.Generator) -> None:
        self.predictions, self.rng = predictions, rng
        scores = predictions.scores
        self.metric, self.whole = scores.main_metric, scores.metrics[scores.main_metric]
        self.is_share_of_images = self.metric == "accuracy" and bool(scores.confusion)
        self.lowest = -1.0 if self.metric in SIGNED else 0.0
        self._measured: NDArray[np.float64] | None = None

    def score(self, value: str, index: NDArray[np.int64]) -> GroupScore:
        """Return the score of the images at `index`."""
        score, count = self._main(index), len(index)
        ends: tuple[float | None, float | None] = (None, None)
        if score is not None and self.is_share_of_images:
            ends = interval(round(score * count), count)
        elif score is not None:
            ends = self._bootstrap(index, score)
        return GroupScore(value=value, images=count, score=score, low=ends[0], high=ends[1])

    def _main(self, index: NDArray[np.int64]) -> float | None:
        values, labels = self.predictions.values[index], self.predictions.labels[index]
        return self.predictions.task.score(values, labels).metrics.get(self.metric)

    def _bootstrap(self, index: NDArray[np.int64], score: float) -> tuple[float, float]:
        count = len(index)
        if count < MIN_IMAGES:
            return (self.lowest, 1.0)
        resampled = self.drawn_from(index)
        drawn = (resampled(self.rng.integers(0, count, count)) for _ in range(REPLICATES))
        known = [value for value in drawn if value is not None]
        # Resamples without a class have no score. If most are, the images say little.
        if 2 * len(known) < REPLICATES:
            return (self.lowest, 1.0)
        low, high = np.quantile(known, [0.025, 0.975]).tolist()
        return min(low, score), max(high, score)

    def drawn_from(self, index: NDArray[np.int64]) -> Callable[[NDArray[np.int64]], float | None]:
        """Return the function from a resample's positions in `index` to its score."""
        task, count = self.predictions.task, len(index)
        part = task.score_parts[0]
        rows = self._measure()[index]
        first = task.summarize(part, rows.sum(0), 0.0)[0]
        # An AUC from sums is one of bins, and only close to the exact one.
        if first.value is None or first.metric != self.metric or self.metric == "auc":
            return lambda drawn: self._main(index[drawn])

        def summed(drawn: NDArray[np.int64]) -> float | None:
            # Images in a resample count as often as they were drawn.
            sums = np.bincount(drawn, minlength=count) @ rows
            return task.summarize(part, sums, 0.0)[0].value

        return summed

    def _measure(self) -> NDArray[np.float64]:
        """Return rows of the main part of all images, from whose sums resamples' scores follow."""
        import torch

        if self._measured is None:
            values, labels, task = (
                self.predictions.values,
                self.predictions.labels,
                self.predictions.task,
            )
            parts = [
                task.measure(
                    task.score_parts[0],
                    torch.from_numpy(np.ascontiguousarray(values[start : start + MEASURED])),
                    torch.from_numpy(np.ascontiguousarray(labels[start : start + MEASURED])),
                )
                for start in range(0, len(labels), MEASURED)
            ]
            self._measured = torch.cat(parts).double().numpy()
        return self._measured
