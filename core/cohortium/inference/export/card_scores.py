"""Scores in a model card: of all images, by class, by centre and by group."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohortium.data.scores import DECIMALS, columns_of, metric_name
from cohortium.inference.export.markdown import plain, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cohortium.data.scores import Scores
    from cohortium.inference.classifier import Classifier


def describe_scores(classifier: Classifier, *, is_scored_anew: bool) -> Iterator[str]:
    """Yield the paragraphs about the scores.

    Args:
        classifier: The model of a complete run.
        is_scored_anew: Whether the scores were compared with the run's stored predictions.
    """
    result = classifier.result
    assert result is not None
    scores = result.scores
    if classifier.personal is not None:
        yield (
            "This model has no scores on images that it did not see and was not chosen by. Those "
            "of the run are of its global network."
        )
        return
    if scores is None:
        yield "There were no test images, so there are no scores."
        return
    if classifier.chosen is not None:
        yield "**These are of the run's last round, not of the round that was chosen here.**"
    told = ", ".join(
        f"{plain(metric_name(name))} {_shown(name, value)}"
        for name, value in scores.metrics.items()
    )
    yield f"On {classifier.dataset_info.test:,} test images: {told}.{_majority(scores)}"
    if result.is_personal:
        yield (
            "**They are of the global network, which this folder holds and no site of the run "
            "uses:** its trainer makes each site a network of its own."
        )
    columns = columns_of(scores.per_class)
    yield table(
        ("class", "images", *map(metric_name, columns)),
        (
            (row.name, row.examples, *(_shown(key, row.metrics.get(key)) for key in columns))
            for row in scores.per_class
        ),
    )
    yield from _groups(scores)
    yield (
        "They are computed again from the run's predictions for each test image, a file that "
        "nobody signs."
        if is_scored_anew
        else "They are as the run recorded them; nothing in its folder can prove them."
    )


def _groups(scores: Scores) -> Iterator[str]:
    """Yield the main metric by centre and by group, with the worst of each."""
    metric = scores.main_metric
    for part in scores.groups:
        yield f"By {plain(part.name)}, with intervals at 95 %:"
        yield table(
            (part.name, "images", metric_name(metric), "from", "to"),
            (
                (
                    _stated(row.value),
                    row.images,
                    *(_shown(metric, value) for value in (row.score, row.low, row.high)),
                )
                for row in part.rows
            ),
        )
        worst = part.worst_row
        if worst is not None:
            chance = (
                "Its interval lies below the score of all images."
                if part.is_below_all
                else "Its interval does not lie below the score of all images, so that chance "
                "alone may have made it the worst."
            )
            yield (
                f"**Worst {plain(part.name)}:** {plain(_stated(worst.value))}, "
                f"{_shown(metric, worst.score)} on {worst.images:,} images. {chance}"
            )


def _stated(value: str) -> str:
    return value or "not stated"


def _majority(scores: Scores) -> str:
    """Return the accuracy of always predicting the most frequent class."""
    share = scores.majority_share
    if share is None:
        return ""
    return f" Calling every image the most frequent class is right for {share:.2%}."


def _shown(metric: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if metric in DECIMALS else f"{value:.2%}"
