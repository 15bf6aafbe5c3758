"""Comparison of a run's scores with its stored predictions.

There is a prediction for each test image.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import numpy as np

from cohortium.data.scores import UNBOUNDED, GroupScore, GroupScores
from cohortium.errors import DataError
from cohortium.runs.result import PREDICTIONS, RESULT, predictions_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cohortium.data.predictions import Predictions
    from cohortium.data.scores import Scores
    from cohortium.inference.classifier import Classifier

CLOSE = 5e-5
"""Largest difference of two equal scores. It is less than a card shows. Predictions are stored in
single precision."""


def recompute_scores(classifier: Classifier) -> bool:
    """Compute the scores again, and refuse a result that differs.

    The check finds a figure that was altered or that is from another run. It is no signature:
    anyone who can write the one file can write the other.

    Returns:
        Whether the run stored its predictions, so that the scores could be computed again.

    Raises:
        DataError: The scores differ from the result's.
        RequestError: The predictions are damaged.
    """
    result = classifier.result
    assert result is not None, "only a complete run has scores"
    if result.scores is None or not (classifier.folder / PREDICTIONS).exists():
        return False
    predictions = predictions_of(classifier.folder)
    try:
        found = attrs.evolve(predictions.scores, groups=tuple(_by_group(predictions)))
        pairs = zip(_figures(found), _figures(result.scores), strict=True)
        is_same = all(_is_close(one, other) for one, other in pairs)
    except (IndexError, KeyError, TypeError, ValueError):  # predictions of another task, or labels
        is_same = False
    if not is_same:
        raise DataError(
            f"the scores in {classifier.folder / RESULT} are not those of the predictions "
            f"in {PREDICTIONS} next to it; one of the two was replaced: take both from one run."
        )
    return True


def _figures(scores: Scores) -> Iterator[float | None]:
    """Yield the figures that a card shows."""
    yield from _metrics(scores.metrics)
    for row in scores.per_class:
        yield row.examples
        yield from _metrics(row.metrics)
    for part in scores.groups:
        for group in part.rows:
            yield group.images
            yield group.score


def _by_group(predictions: Predictions) -> Iterator[GroupScores]:
    """Yield the main metric by centre and by group, without intervals."""
    task, main = predictions.task, predictions.scores.main_metric
    for grouping in predictions.groupings:
        rows = []
        for code, value in enumerate(grouping.values):
            index = np.flatnonzero(grouping.codes == code)
            part = task.score(predictions.values[index], predictions.labels[index])
            score, images = part.metrics.get(main), len(index)
            rows.append(GroupScore(value=value, images=images, score=score, low=None, high=None))
        yield GroupScores(name=grouping.name, is_centre=grouping.is_centre, rows=tuple(rows))


def _metrics(values: Mapping[str, float | None]) -> Iterator[float | None]:
    """Yield the metrics that are shares, by name.  The loss is not exact in single precision."""
    yield from (values[name] for name in sorted(values) if name not in UNBOUNDED)


def _is_close(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=0, abs_tol=CLOSE)
