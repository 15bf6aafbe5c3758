"""Difference between two cells, with an interval.

The interval covers both seeds and test images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from attrs import frozen

from cohortium.errors import RequestError
from cohortium.runs.dataset_info import read_result
from cohortium.runs.result import predictions_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

DRAWS = 10_000
"""Draws of the bootstrap. The ends of a 95 % interval are then precise to about a fiftieth of its
width."""

COVERAGE = 0.95


MIN_SEEDS = 3
"""Fewest seeds for an interval. Two seeds can only agree or disagree, which does not show how much
a seed matters."""


@frozen(kw_only=True)
class Difference:
    """First minus second, over the shared seeds and the test images.

    Attributes:
        metric: Such as "accuracy". For a task with several classes an image, it is "mean score"
            (see `Task.example_scores`).
        mean: The difference.
        low: Lower end of the interval. Unless `is_firm`, it is rough and covers the images alone.
        high: Its upper end.
        seeds: The seeds compared.
        images: Number of images compared.
    """

    metric: str
    mean: float
    low: float
    high: float
    seeds: tuple[int, ...]
    images: int

    @property
    def is_firm(self) -> bool:
        """Whether there are enough seeds for a valid interval."""
        return len(self.seeds) >= MIN_SEEDS

    @property
    def is_significant(self) -> bool:
        """Whether the interval is valid and excludes 0."""
        return self.is_firm and (self.low > 0 or self.high < 0)

    def as_json(self) -> dict[str, Any]:
        """Return plain values, without an interval that is not valid."""
        told = {**attrs.asdict(self), "is_told_apart": self.is_significant}
        return told if self.is_firm else {**told, "low": None, "high": None}

    def __str__(self) -> str:
        """Return a text for people, in percentage points."""
        of = f"{_counted(len(self.seeds), 'seed')}, {self.images} images"
        told = f"{self.metric}: {100 * self.mean:+.2f} points"
        if not self.is_firm:
            return (
                f"{told}, no interval ({of}; not distinguishable: that takes {MIN_SEEDS} seeds or "
                "more)"
            )
        verdict = "" if self.is_significant else "; not distinguishable"
        return (
            f"{told}, {COVERAGE:.0%} interval {100 * self.low:+.2f} to {100 * self.high:+.2f} "
            f"({of}{verdict})"
        )


@frozen(kw_only=True)
class Comparison:
    """Comparison of two cells, or of two runs.

    Attributes:
        differences: In accuracy and balanced accuracy, or in the scores that stand for them.
        seeds: Shared seeds. Each determines a partition of the data, and initial weights.
        others: Seeds that only one of the cells has. They are left out.
        images: Number of test images.
        majority_share: Accuracy of a classifier that always predicts the most frequent class, or
            None if an image has several classes.
        accuracies: Mean score of an example, of the first and the second, over these seeds. It is
            the accuracy if each image has one class.
        data: Names of the data sets. One, unless they differ.
        rounds: Fewest and most rounds that the runs finished.
        is_personal: Whether sites of one cell use networks of their own. Those are not compared.
    """

    differences: tuple[Difference, ...]
    seeds: tuple[int, ...]
    others: tuple[int, ...]
    images: int
    majority_share: float | None
    accuracies: tuple[float, float]
    data: tuple[str, ...]
    rounds: tuple[int, int]
    is_personal: bool

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        differences = [each.as_json() for each in self.differences]
        return {**attrs.asdict(self, recurse=False), "differences": differences}

    def __str__(self) -> str:
        """Return a text for people."""
        seeds = f"{_counted(len(self.seeds), 'seed')} ({', '.join(map(str, self.seeds))})"
        first, second = self.accuracies
        spoken = (
            f"over {seeds}, each with a partition of its own, and {self.images} test images of "
            f"{' and '.join(self.data)}: {self.differences[0].metric} {first:.2%} and {second:.2%}"
        )
        if self.majority_share is not None:
            spoken += f"; the most frequent class alone {self.majority_share:.2%}"
        lines = [spoken]
        if self.others:
            lines.append(
                f"left out, for only one of the two has them: "
                f"{_counted(len(self.others), 'seed')} ({', '.join(map(str, self.others))})"
            )
        if self.rounds[0] != self.rounds[1]:
            lines.append(f"the runs finished {self.rounds[0]} to {self.rounds[1]} rounds")
        if self.is_personal:
            lines.append(
                "of global networks, which no site uses where a trainer makes each one of its own"
            )
        return "\n".join([*lines, *map(str, self.differences)])


def compare(first: Path, second: Path) -> tuple[Difference, ...]:
    """Return the differences of `first` minus `second` that `contrast` finds."""
    return contrast(first, second).differences


def contrast(first: Path, second: Path) -> Comparison:
    """Compare `first` with `second` in accuracy and balanced accuracy.

    This is a paired bootstrap. It draws seeds and images with replacement, independently of one
    another. Both cells get the same draws, so images that both find hard do not widen the interval.
    Drawing along both dimensions at once errs towards wide intervals (Owen 2007, "The pigeonhole
    bootstrap"). With fewer than `MIN_SEEDS` seeds no interval is valid, because it would cover the
    images alone.

    Args:
        first: A cell's folder, or one run's.
        second: Another cell's or run's folder.

    Raises:
        RequestError: They share no seed, or were tested on different images.
    """
    one, other = _runs(first), _runs(second)
    seeds = tuple(sorted(one.keys() & other.keys()))
    if not seeds:
        raise RequestError(f"{first} and {second} have no finished run with the same seed.")
    folders = [runs[seed] for seed in seeds for runs in (one, other)]
    known = predictions_of(folders[0])
    hits = []
    for folder in folders:
        said = predictions_of(folder)
        if not np.array_equal(said.labels, known.labels) or said.task != known.task:
            raise RequestError(f"{folder} was tested on other images than {folders[0]}.")
        hits.append(said.task.example_scores(said.values, said.labels))
    firsts, seconds = np.stack(hits[::2]), np.stack(hits[1::2])
    strata = known.task.strata(known.labels)
    found = bootstrap(firsts - seconds, strata, np.random.default_rng(0))
    majority_share = known.scores.majority_share
    if majority_share is None:
        names = {"accuracy": "mean score", "balanced accuracy": "balanced mean score"}
        found = {names[metric]: ends for metric, ends in found.items()}
    results = [read_result(folder) or {} for folder in folders]
    counts = [int(result.get("rounds", 0)) for result in results]
    return Comparison(
        differences=tuple(
            Difference(
                metric=metric,
                mean=mean,
                low=low,
                high=high,
                seeds=seeds,
                images=len(known.labels),
            )
            for metric, (mean, low, high) in found.items()
        ),
        seeds=seeds,
        others=tuple(sorted(one.keys() ^ other.keys())),
        images=len(known.labels),
        majority_share=majority_share,
        accuracies=(float(firsts.mean()), float(seconds.mean())),
        data=tuple(dict.fromkeys(str(r.get("data") or "unnamed data") for r in results)),
        rounds=(min(counts), max(counts)),
        is_personal=any(bool(result.get("is_personal")) for result in results),
    )


def bootstrap(
    gains: NDArray[np.float64],
    labels: NDArray[np.int64],
    rng: np.random.Generator,
    draws: int = DRAWS,
) -> dict[str, tuple[float, float, float]]:
    """Return mean and interval of each metric's difference.

    Args:
        gains: Shape (S, N), by seed and image. 1 if only the first was right, -1 if only the second
            was, else 0.
        labels: Of the images, shape (N,).
        rng: Source of the draws.
        draws: Number of draws.
    """
    seeds, images = gains.shape
    classes = np.unique(labels)
    of_class = (labels[:, None] == classes).astype(np.float64)  # (N, K)
    accuracies, balanced = np.empty(draws), np.empty(draws)
    for d in range(draws):
        weights = np.bincount(rng.integers(seeds, size=seeds), minlength=seeds) / seeds
        counts = np.bincount(rng.integers(images, size=images), minlength=images)
        gain = (weights @ gains) * counts  # (N,)
        totals = counts @ of_class  # a class that was not drawn has no sensitivity
        accuracies[d] = gain.sum() / images
        balanced[d] = ((gain @ of_class)[totals > 0] / totals[totals > 0]).mean()
    mean = gains.mean(0)
    ends = [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2]
    means = {
        "accuracy": (float(mean.mean()), accuracies),
        "balanced accuracy": (float(((mean @ of_class) / of_class.sum(0)).mean()), balanced),
    }
    found = {}
    for metric, (middle, drawn) in means.items():
        low, high = np.quantile(drawn, ends)
        found[metric] = (middle, float(low), float(high))
    return found


def _runs(folder: Path) -> dict[int, Path]:
    """Return a folder's finished runs by seed.

    The folder is a cell's, or that of one run.
    """
    places = [folder, *sorted(folder.glob("seed-*"))] if folder.is_dir() else []
    found = {}
    for place in places:
        if (place / "result.json").exists():
            found[_seed(place)] = place
    if not found:
        raise RequestError(f"{folder} holds no finished run; give a run's folder or a cell's.")
    return found


def _seed(folder: Path) -> int:
    from cohortium.study import toml

    study = toml.read(folder / "study.toml", what="the study")
    return int(study.get("federation", {}).get("seed", 1))


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
