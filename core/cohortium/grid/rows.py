"""The finished runs of a grid's cells, and their figures over seeds."""

from __future__ import annotations

import json
import statistics
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from attrs import frozen

from cohortium.runs.result import SITE_SCORES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from cohortium.grid.cells import Cell, Grid, Images

METRICS = ("accuracy", "balanced_accuracy", "auc")
"""As `result.json` calls them."""

HOLDOUT_METRICS = ("personal_accuracy", "site_accuracy", "site_majority_share")
"""On what the sites held out, where they did: of each site's own model, of the global one, and of
whoever calls all images of a site one class."""

HEADS = MappingProxyType(
    {
        "accuracy": "accuracy",
        "balanced_accuracy": "balanced",
        "auc": "AUC",
        "majority_share": "majority",
        "personal_accuracy": "own at sites",
        "site_accuracy": "global at sites",
        "site_majority_share": "majority at sites",
    }
)
"""What the table calls a figure."""


@frozen(kw_only=True)
class Summary:
    """One figure over seeds.

    Attributes:
        mean: Over the runs.
        standard_deviation: Standard deviation over the runs, with n - 1; None for one run.
    """

    mean: float
    standard_deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Of at least one value."""
        several = len(values) > 1
        return cls(
            mean=statistics.fmean(values),
            standard_deviation=statistics.stdev(values) if several else None,
        )

    def percent(self) -> str:
        """Such as `93.51 ± 0.32`."""
        spread = (
            "" if self.standard_deviation is None else f" ± {100 * self.standard_deviation:.2f}"
        )
        return f"{100 * self.mean:.2f}{spread}"


@frozen(kw_only=True)
class Row:
    """One cell that has finished runs.

    Attributes:
        cell: Which.
        images: Which its figures are of.
        results: Each run's `result.json`, and what `HOLDOUT_METRICS` names, by seed.
    """

    cell: Cell
    images: Images
    results: Mapping[int, Mapping[str, Any]]

    def metric(self, seed: int, metric: str) -> float | None:
        """Of one run; None if it has none."""
        result = self.results[seed]
        if metric in HOLDOUT_METRICS:
            own: float | None = result.get(metric)
            return own
        # A round's figures are of the validation images.
        scores = result if self.images == "test" else result["history"][-1]
        value: float | None = scores.get(metric)
        if value is None and metric == "majority_share" and self.images == "test":
            return _majority_share(result.get("confusion"))
        return value

    @property
    def rounds(self) -> tuple[int, int]:
        """Fewest and most rounds that its runs finished: a mean may join runs of several."""
        counts = [int(result["rounds"]) for result in self.results.values()]
        return min(counts), max(counts)

    @property
    def data(self) -> str:
        """What its figures are of."""
        return str(next(iter(self.results.values())).get("data") or "")

    @property
    def is_personal(self) -> bool:
        """Whether sites use networks of their own, and the global one is nobody's."""
        return any(result.get("is_personal") for result in self.results.values())

    def summary(self, metric: str) -> Summary | None:
        """Over the runs; None where a run has none."""
        values = [self.metric(seed, metric) for seed in self.results]
        known = [value for value in values if value is not None]
        return Summary.of(known) if len(known) == len(values) else None

    @property
    def seconds(self) -> float:
        """Mean time of a run."""
        return statistics.fmean(r["seconds"]["total"] for r in self.results.values())

    @property
    def upload_bytes(self) -> int:
        """The most that one site sent in a round."""
        return max(int(r["max_upload_bytes"]) for r in self.results.values())

    @property
    def guarantee(self) -> Mapping[str, Any] | None:
        """The weakest of the runs' guarantees; None if one has none."""
        given = [result["guarantee"] for result in self.results.values()]
        return None if None in given else max(given, key=lambda g: g["epsilon"])


def rows(grid: Grid, out: Path) -> tuple[Row, ...]:
    """Every cell with a finished run under `out`, whichever call ran it, in the grid's order."""
    found = []
    for cell in grid.cells():
        results = {}
        for seed in grid.seeds:
            path = out / cell.name / f"seed-{seed}" / "result.json"
            if path.exists():
                results[seed] = json.loads(path.read_text("utf-8")) | _holdout_means(path.parent)
        if results:
            found.append(Row(cell=cell, images=grid.images, results=results))
    return tuple(found)


def _holdout_means(folder: Path) -> dict[str, float]:
    """Means over all images that the sites of a run held out."""
    path = folder / SITE_SCORES
    if not path.exists():
        return {}
    sites = json.loads(path.read_text("utf-8"))
    images = sum(site["images"] for site in sites)
    return {
        name: sum(site["images"] * site[key] for site in sites) / images
        for name, key in zip(
            HOLDOUT_METRICS, ("personal_accuracy", "accuracy", "majority_share"), strict=True
        )
        if images and all(key in site for site in sites)
    }


def _majority_share(confusion: Sequence[Sequence[int]] | None) -> float | None:
    """The share of the most frequent class, where a result does not say it itself."""
    counts = [sum(row) for row in confusion or ()]
    return max(counts) / sum(counts) if sum(counts) else None


def metrics_of(table: Sequence[Row]) -> tuple[str, ...]:
    """What the table tells of; what sites use themselves comes first where a trainer makes that."""
    figures = (*METRICS, "majority_share")
    if not any(row.summary(HOLDOUT_METRICS[0]) for row in table):
        return figures
    return (
        (*HOLDOUT_METRICS, *figures)
        if any(row.is_personal for row in table)
        else (*figures, *HOLDOUT_METRICS)
    )


def headline_of(table: Sequence[Row]) -> tuple[str, str]:
    """The accuracy that a plot is of, and the share of the most frequent class beside it.

    The sites' own where a trainer makes those, provided that all rows have them: figures on the
    test images and on what sites held out are not of the same images.
    """
    is_own = any(row.is_personal for row in table) and all(
        row.summary(HOLDOUT_METRICS[0]) for row in table
    )
    return (HOLDOUT_METRICS[0], HOLDOUT_METRICS[2]) if is_own else ("accuracy", "majority_share")
