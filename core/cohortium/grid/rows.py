"""Finished runs of a grid's cells, and their metrics over seeds."""

from __future__ import annotations

import statistics
from types import MappingProxyType
from typing import TYPE_CHECKING

from attrs import field, frozen

from cohortium.data.group_scores import worst_row
from cohortium.data.scores import UNBOUNDED, GroupScore
from cohortium.reporting.reading import read_site_scores
from cohortium.runs.result import RESULT, SITE_SCORES
from cohortium.runs.stored_result import ResultFile, read_result

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from cohortium.data.scores import GroupScores
    from cohortium.grid.cells import Cell, Grid, Images
    from cohortium.privacy.guarantee import Guarantee

HOLDOUT_METRICS = (
    "personal_score",
    "site_score",
    "site_majority_share",
    "site_alone_score",
    "site_adapted_score",
    "worst_site_score",
)
"""Metrics on the images that sites held out, if any.

They are the main scores of each site's own model and of the global model, and the share of the
site's most frequent class.  Then come those of models that sites trained alone, and of adapted
ones.  The last is that of the worst site, with the model that it uses in the end.
"""

HOLDOUT_KEYS = ("personal_score", "score", "majority_share", "alone_score", "adapted_score")
"""Keys of a site's scores, for all of `HOLDOUT_METRICS` but the last."""

HEADS = MappingProxyType(
    {
        "balanced_accuracy": "balanced",
        "majority_share": "majority",
        "personal_score": "own at sites",
        "site_score": "global at sites",
        "site_majority_share": "majority at sites",
        "site_alone_score": "alone at sites",
        "site_adapted_score": "adapted at sites",
        "worst_site_score": "worst site",
    }
)
"""Headings of metrics in the table whose heading is not their name."""


@frozen(kw_only=True)
class Summary:
    """One metric over seeds.

    Attributes:
        mean: Mean over the runs.
        standard_deviation: Standard deviation over the runs, with n - 1. None for one run.
    """

    mean: float
    standard_deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Compute the summary of at least one value."""
        several = len(values) > 1
        return cls(
            mean=statistics.fmean(values),
            standard_deviation=statistics.stdev(values) if several else None,
        )

    def percent(self) -> str:
        """Return a text such as `93.51 ± 0.32`."""
        spread = (
            "" if self.standard_deviation is None else f" ± {100 * self.standard_deviation:.2f}"
        )
        return f"{100 * self.mean:.2f}{spread}"


@frozen(kw_only=True)
class GroupSummary:
    """Main metric of one centre, or of one value of a group, over seeds.

    Attributes:
        value: Name of the centre or of the value. "" if it is not stated.
        images: Number of images, the fewest of the runs.
        score: The main metric.
        low: Lowest end of the runs' intervals.
        high: Highest end of the runs' intervals.
    """

    value: str
    images: int
    score: Summary
    low: float
    high: float


@frozen(kw_only=True)
class Row:
    """One cell that has finished runs.

    Attributes:
        cell: The cell.
        images: The images that its metrics are about.
        results: Each run's `result.json`, by seed.
        held_out: Each run's `HOLDOUT_METRICS`, by seed.
    """

    cell: Cell
    images: Images
    results: Mapping[int, ResultFile]
    held_out: Mapping[int, Mapping[str, float]] = field(factory=dict)

    def metric(self, seed: int, metric: str) -> float | None:
        """Return the value of one run, or None if it has none."""
        if metric in HOLDOUT_METRICS:
            return self.held_out.get(seed, {}).get(metric)
        result = self.results[seed]
        # A round's metrics are always about the validation images.
        if self.images != "test":
            return result.history[-1].get(metric) if result.history else None
        if result.scores is None:
            return None
        if metric == "majority_share":
            return result.scores.majority_share
        return result.scores.metrics.get(metric)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the shares among its metrics, the main one first."""
        scored = [result.scores.metrics for result in self.results.values() if result.scores]
        names = dict.fromkeys(name for metrics in scored for name in metrics)
        return tuple(name for name in names if name not in UNBOUNDED) or ("accuracy",)

    @property
    def groupings(self) -> tuple[str, ...]:
        """Names of the groupings by which its test images have scores."""
        parts = [part for seed in self.results for part in self._groups(seed)]
        return tuple(dict.fromkeys(part.name for part in parts))

    def group_scores(self, name: str) -> tuple[GroupSummary, ...]:
        """Return the main metric of each value of a grouping that all runs have.

        Args:
            name: Name of the grouping, such as "centre" or "sex".
        """
        by_value: dict[str, list[GroupScore]] = {}
        for seed in self.results:
            for part in self._groups(seed):
                for each in part.rows if part.name == name else ():
                    by_value.setdefault(each.value, []).append(each)
        found = []
        for value, rows in by_value.items():
            # A row has a score and both ends of its interval, or none of them.
            known = [
                (each.score, each.low, each.high)
                for each in rows
                if each.score is not None and each.low is not None and each.high is not None
            ]
            if len(known) == len(self.results):
                scores, lows, highs = zip(*known, strict=True)
                found.append(
                    GroupSummary(
                        value=value,
                        images=min(each.images for each in rows),
                        score=Summary.of(scores),
                        low=min(lows),
                        high=max(highs),
                    )
                )
        return tuple(found)

    def worst_group(self, name: str) -> GroupSummary | None:
        """Return the worst value of a grouping by its mean, or None (see `worst_row`)."""
        found = self.group_scores(name)
        worst = worst_row(
            [
                GroupScore(
                    value=each.value,
                    images=each.images,
                    score=each.score.mean,
                    low=each.low,
                    high=each.high,
                )
                for each in found
            ]
        )
        return None if worst is None else found[worst]

    def scores_by_value(self, seed: int, name: str) -> dict[str, float | None]:
        """Return the main metric of one run by the values of a grouping."""
        parts = [part for part in self._groups(seed) if part.name == name]
        return {each.value: each.score for part in parts for each in part.rows}

    def _groups(self, seed: int) -> Sequence[GroupScores]:
        """Return the scores by group of one run. A search does not look at them."""
        scores = self.results[seed].scores
        return () if scores is None or self.images != "test" else scores.groups

    @property
    def rounds(self) -> tuple[int, int]:
        """Fewest and most rounds of its runs, which may differ in length."""
        counts = [result.rounds for result in self.results.values()]
        return min(counts), max(counts)

    @property
    def data(self) -> str:
        """Name of the data set."""
        return next(iter(self.results.values())).data

    @property
    def is_personal(self) -> bool:
        """Whether sites use networks of their own, and none the global one."""
        return any(result.is_personal for result in self.results.values())

    def summary(self, metric: str) -> Summary | None:
        """Return the summary over the runs, or None without a value."""
        values = [self.metric(seed, metric) for seed in self.results]
        known = [value for value in values if value is not None]
        return Summary.of(known) if len(known) == len(values) else None

    @property
    def seconds(self) -> float:
        """Mean time of a run."""
        return statistics.fmean(r.seconds.total for r in self.results.values())

    @property
    def upload_bytes(self) -> int:
        """The most bytes that one site sent in a round."""
        return max(result.max_upload_bytes for result in self.results.values())

    @property
    def guarantee(self) -> Guarantee | None:
        """The weakest guarantee of the runs, or None if one has none."""
        given = [r.guarantee for r in self.results.values() if r.guarantee is not None]
        return max(given, key=lambda g: g.epsilon) if len(given) == len(self.results) else None


def rows(grid: Grid, out: Path) -> tuple[Row, ...]:
    """Return the cells with finished runs under `out`, in grid order.

    It does not matter which call ran the cell.

    Raises:
        CohortiumError: A result is damaged. The sentence names its file.
    """
    found = []
    for cell in grid.cells():
        results, held_out = {}, {}
        for seed in grid.seeds:
            folder = out / cell.name / f"seed-{seed}"
            result = read_result(folder / RESULT, ResultFile)
            if result is not None:
                results[seed], held_out[seed] = result, _holdout_means(folder)
        if results:
            found.append(Row(cell=cell, images=grid.images, results=results, held_out=held_out))
    return tuple(found)


def _holdout_means(folder: Path) -> dict[str, float]:
    """Return means over all images that a run's sites held out."""
    sites = read_site_scores(folder / SITE_SCORES)
    images = sum(site.images for site in sites)
    if not images:
        return {}
    found = {}
    for name, key in zip(HOLDOUT_METRICS, HOLDOUT_KEYS, strict=False):
        known = [(site.images, getattr(site, key)) for site in sites]
        if all(score is not None for _, score in known):
            found[name] = sum(count * score for count, score in known) / images
    found[HOLDOUT_METRICS[5]] = min(site.used_score for site in sites)
    return found


def metrics_of(table: Sequence[Row]) -> tuple[str, ...]:
    """Return the metrics of the table, the most relevant first.

    If a trainer makes networks for the sites themselves, the metrics of those come first.  Metrics
    on held-out images that no run has are left out.
    """
    names = dict.fromkeys(name for row in table for name in row.metrics)
    figures = (*names, "majority_share")
    if not any(row.summary(HOLDOUT_METRICS[0]) for row in table):
        return figures
    held_out = [name for name in HOLDOUT_METRICS if any(row.summary(name) for row in table)]
    if any(row.is_personal for row in table):
        return (*held_out, *figures)
    return (*figures, *held_out)


def groupings_of(table: Sequence[Row]) -> tuple[str, ...]:
    """Return the names of the groupings of the table, each once."""
    return tuple(dict.fromkeys(name for row in table for name in row.groupings))


def headline_of(table: Sequence[Row]) -> tuple[str, str]:
    """Return the metric of a plot, and its most frequent class's share.

    It is the accuracy of the sites' own networks if a trainer makes those and all rows have it.
    Metrics on the test images and on held-out images are about different images.
    """
    is_own = any(row.is_personal for row in table) and all(
        row.summary(HOLDOUT_METRICS[0]) for row in table
    )
    main = table[0].metrics[0] if table else "accuracy"
    return (HOLDOUT_METRICS[0], HOLDOUT_METRICS[2]) if is_own else (main, "majority_share")
