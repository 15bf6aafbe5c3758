"""Content of a report about one run, as rows for templates."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

from cohortium.data.scores import columns_of, interval, mean_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cohortium.data.scores import CalibrationBin, ClassScores, Scores
    from cohortium.reporting.reading import Record
    from cohortium.roles.events import StageStats
    from cohortium.runs.holdout_scores import SiteScores

MAX_ROWS = 60
"""Most sites, and most lost contributions, that are listed one by one."""


@frozen(kw_only=True)
class ClassRow:
    """A class, its scores, and the interval of its sensitivity at 95 %, where it has one."""

    scores: ClassScores
    low: float | None
    high: float | None


@frozen(kw_only=True)
class BinRow:
    """A bin of confidence, and the interval of its accuracy at 95 %."""

    part: CalibrationBin
    share: float
    low: float
    high: float


@frozen(kw_only=True)
class HeldOutRows:
    """Scores of simulated sites on their held-out images, for a table.

    Attributes:
        metric: Name of the score.
        rows: The sites, the worst one first by the network that it uses in the end.
        has_alone: Whether each site has a network that it trained alone.
        has_adapted: Whether each site has fine-tuned its network.
        is_personal: Whether a site has a network of its own before that.
        floor: Left end of the plot, a score not above any.
        below_alone: Number of sites whose network is worse than alone.
    """

    metric: str
    rows: tuple[SiteScores, ...]
    has_alone: bool
    has_adapted: bool
    is_personal: bool
    floor: float
    below_alone: int


@frozen(kw_only=True)
class SiteRow:
    """One simulated site's labels.

    Attributes:
        site: Its number.
        size: Number of training examples.
        counts: By class.
        distance: Distance between its labels and those of all sites. It is the least share of the
            site's examples that would need other labels for the two to agree.
    """

    site: int
    size: int
    counts: tuple[int, ...]
    distance: float


@frozen(kw_only=True)
class LostContribution:
    """A contribution that the coordinator requested and lost, with its outcome."""

    round: int
    site: int
    stage: str
    outcome: str
    reason: str
    is_counted: bool


@frozen(kw_only=True)
class Cost:
    """Cost of one kind of exchange, or another part of the time.

    It covers the whole run.

    Attributes:
        name: Name of the part.
        seconds: Over the run.
        share: Of the whole run's time.
        upload: Bytes that one site sends in it, per round on average. None if it sends none.
        download: Bytes that one site receives in it, per round on average. None if it receives
            none.
    """

    name: str
    seconds: float
    share: float
    upload: float | None = None
    download: float | None = None


def accuracy_interval(scores: Scores) -> tuple[float, float] | None:
    """Return the interval of the accuracy at 95 %, or None if an image has several classes."""
    if not scores.confusion:
        return None
    hits = sum(row[k] for k, row in enumerate(scores.confusion))
    return interval(hits, scores.images) if scores.images else (0.0, 1.0)


def class_rows(scores: Scores) -> tuple[ClassRow, ...]:
    """Return a row for each class."""
    found = []
    for row in scores.per_class:
        sensitivity, low, high = row.metrics.get("sensitivity"), None, None
        if sensitivity is not None and row.examples:
            low, high = interval(round(sensitivity * row.examples), row.examples)
        found.append(ClassRow(scores=row, low=low, high=high))
    return tuple(found)


def means(scores: Scores) -> dict[str, float | None]:
    """Return the mean over the classes of each of their scores.

    Scores of masks leave out the background, as their main metric does.
    """
    rows = scores.per_class[1:] if has_masks(scores) and scores.per_class[1:] else scores.per_class
    return {name: mean_of(rows, name) for name in columns_of(scores.per_class)}


def has_masks(scores: Scores) -> bool:
    """Return whether the scores are of masks, whose first class is the background."""
    return scores.main_metric == "dice"


def bin_rows(scores: Scores) -> tuple[BinRow, ...]:
    """Return a row for each bin that contains images."""
    total = sum(part.examples for part in scores.calibration) or 1
    found = []
    for part in scores.calibration:
        if part.examples and part.accuracy is not None:
            low, high = interval(round(part.accuracy * part.examples), part.examples)
            found.append(BinRow(part=part, share=part.examples / total, low=low, high=high))
    return tuple(found)


def held_out_rows(scores: Sequence[SiteScores]) -> HeldOutRows | None:
    """Return the rows of sites that held images out, or None without any."""
    if not scores:
        return None
    values = [
        value
        for row in scores
        for value in (row.score, row.used_score, row.personal_score, row.alone_score)
        if value is not None
    ]
    return HeldOutRows(
        metric=scores[0].metric,
        rows=tuple(sorted(scores, key=lambda row: (row.used_score, row.site))),
        has_alone=all(row.alone_score is not None for row in scores),
        has_adapted=all(row.adapted_score is not None for row in scores),
        is_personal=any(row.personal_score != row.score for row in scores),
        floor=max(0.0, math.floor(min(values) * 10) / 10) if min(values) < 1 else 0.0,
        below_alone=sum(
            row.alone_score is not None and row.used_score < row.alone_score for row in scores
        ),
    )


def site_rows(sizes: Sequence[int], counts: Sequence[Sequence[int]]) -> tuple[SiteRow, ...]:
    """Return a row for each site of a simulation.

    If each image has one label, the distance is the total variation. Else it is the largest
    difference in the share of images with one label, which is also a least share of changes.

    Args:
        sizes: Number of training examples of each site.
        counts: Number of each site's examples that have each label.
    """
    if not counts:
        return ()
    held, images = np.array(counts, dtype=np.float64), np.array(sizes, dtype=np.float64)
    apart = np.abs(held / images[:, None].clip(1) - held.sum(0) / max(images.sum(), 1))
    is_exclusive = np.array_equal(held.sum(1), images)
    distances = apart.sum(1) / 2 if is_exclusive else apart.max(1, initial=0.0)
    return tuple(
        SiteRow(site=k, size=sizes[k], counts=tuple(row), distance=float(distances[k]))
        for k, row in enumerate(counts)
    )


def mean_distance(rows: tuple[SiteRow, ...]) -> float:
    """Return the mean distance between a site's labels and all labels.

    Sites are weighted by their sizes.
    """
    total = sum(row.size for row in rows) or 1
    return sum(row.size * row.distance for row in rows) / total


def lost_contributions(record: Record) -> tuple[LostContribution, ...]:
    """Return every contribution or answer that was lost, by round and site."""
    reasons = {(f.attempt, f.site): f.reason for f in record.failures}
    found = []
    for event in record.rounds:
        lost = []
        for place, stage in enumerate(event.stages):
            for site in stage.dropped:
                is_counted = site in event.contributors
                outcome = _outcome(record, event.stages, place, is_counted=is_counted)
                lost.append((site, stage.name, outcome, is_counted))
        unnamed = set(event.dropped) - {site for site, *_ in lost}
        lost += [(site, "", "Left out of the sum.", False) for site in sorted(unnamed)]
        found += [
            LostContribution(
                round=event.round,
                site=site,
                stage=stage,
                outcome=outcome,
                reason=reasons.get((event.attempt, site), "no answer"),
                is_counted=is_counted,
            )
            for site, stage, outcome, is_counted in lost
        ]
    return tuple(found)


def _outcome(
    record: Record, stages: tuple[StageStats, ...], place: int, *, is_counted: bool
) -> str:
    """Describe the outcome for a site that was lost.

    The loss is in the exchange at `place` of `stages`.
    """
    if record.aggregation is None:
        return "Counted." if is_counted else "Left out of the sum; no masks to take off."
    last = stages[-1].name or f"exchange {len(stages)}"
    if is_counted:
        return f"Counted; masks came off in {last} with the others’ shares."
    names = [stage.name for stage in stages]
    if "vectors" in names and place < names.index("vectors"):
        return "Left out before anyone had masked with it."
    return f"Left out; masks that others shared with it came off in {last}."


def costs(record: Record) -> tuple[Cost, ...]:
    """Return a run's time and bytes by part, in round order."""
    seconds: dict[str, float] = defaultdict(float)
    up: Counter[str] = Counter()
    down: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    for stages in _attempts(record):
        for place, stage in enumerate(stages):
            name = stage.name or f"exchange {place + 1}"
            seconds[name] += stage.seconds
            up[name] += stage.upload_bytes
            down[name] += stage.download_bytes
            answers[name] += stage.num_asked
    own = sum(event.seconds_aggregate for event in record.rounds)
    total = sum(seconds.values()) + own
    if record.result is not None:
        total = max(total, record.result.seconds.total)
    total = total or 1.0
    found = [
        Cost(
            name=name,
            seconds=spent,
            share=spent / total,
            upload=up[name] / max(answers[name], 1),
            download=down[name] / max(answers[name], 1),
        )
        for name, spent in seconds.items()
    ]
    found.append(Cost(name="coordinator’s own work", seconds=own, share=own / total))
    rest = total - sum(cost.seconds for cost in found)
    if record.result is not None and rest > 0:
        found.append(Cost(name="around the rounds", seconds=rest, share=rest / total))
    return tuple(found)


def bytes_moved(record: Record) -> tuple[int, int]:
    """Return all bytes uploaded, and all bytes downloaded, over the run."""
    moved = [stage for stages in _attempts(record) for stage in stages]
    return sum(p.upload_bytes for p in moved), sum(p.download_bytes for p in moved)


def _attempts(record: Record) -> list[tuple[StageStats, ...]]:
    """Return the stages of every attempt: the completed rounds, then the failed attempts."""
    return [event.stages for event in (*record.rounds, *record.failed_attempts)]
