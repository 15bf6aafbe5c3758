"""Difference between two cells, with an interval.

The interval covers both seeds and test images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from attrs import frozen

from cohortium.errors import RequestError
from cohortium.grid.differences import (
    COVERAGE,
    MIN_SEEDS,
    Difference,
    GroupDifference,
    GroupDifferences,
    counted,
)
from cohortium.runs.result import RESULT, predictions_of
from cohortium.runs.run_folder import require_run_folder
from cohortium.runs.stored_result import ResultFile, read_result
from cohortium.study.stored_number import stored_number

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from cohortium.data.groups import Grouping
    from cohortium.data.predictions import Predictions

DRAWS = 10_000
"""Draws of the bootstrap. The ends of a 95 % interval are then precise to about a fiftieth of its
width."""

ENDS = [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2]
"""Quantiles at the ends of an interval."""


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
        groups: Differences by centre and by each column of groups that all runs stored alike.
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
    groups: tuple[GroupDifferences, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            **attrs.asdict(self, recurse=False),
            "differences": [each.as_json() for each in self.differences],
            "groups": [each.as_json() for each in self.groups],
        }

    def __str__(self) -> str:
        """Return a text for people."""
        seeds = f"{counted(len(self.seeds), 'seed')} ({', '.join(map(str, self.seeds))})"
        first, second = self.accuracies
        spoken = (
            f"over {seeds}, each with a partition of its own, and {self.images} test images of "
            f"{' and '.join(self.data)}: {self.differences[0].metric} {first:.2%} and {second:.2%}"
        )
        if self.majority_share is not None:
            spoken += f"; the most frequent class alone {self.majority_share:.2%}"
        lines = [spoken]
        if len(self.seeds) < MIN_SEEDS:
            of = "one partition" if len(self.seeds) == 1 else f"{len(self.seeds)} partitions"
            lines.append(
                f"this speaks of {of} of the data, and not of the two settings; that takes "
                f"{MIN_SEEDS} seeds or more"
            )
        if self.others:
            lines.append(
                f"left out, for only one of the two has them: "
                f"{counted(len(self.others), 'seed')} ({', '.join(map(str, self.others))})"
            )
        if self.rounds[0] != self.rounds[1]:
            lines.append(f"the runs finished {self.rounds[0]} to {self.rounds[1]} rounds")
        if self.is_personal:
            lines.append(
                "of global networks, which no site uses where a trainer makes each one of its own"
            )
        return "\n".join([*lines, *map(str, self.differences), *map(str, self.groups)])


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
        StudyError, RecordError: A study or a result there is damaged.
    """
    one, other = _runs(first), _runs(second)
    seeds = tuple(sorted(one.keys() & other.keys()))
    if not seeds:
        raise RequestError(f"{first} and {second} have no finished run with the same seed.")
    folders = [runs[seed] for seed in seeds for runs in (one, other)]
    known, scores, groupings = _example_scores(folders)
    firsts, seconds = scores[::2], scores[1::2]
    strata = known.task.strata(known.labels)
    found = bootstrap(firsts - seconds, strata, np.random.default_rng(0))
    majority_share = known.scores.majority_share
    if majority_share is None:
        names = {"accuracy": "mean score", "balanced accuracy": "balanced mean score"}
        found = {names[metric]: ends for metric, ends in found.items()}
    results = [_result(folder) for folder in folders]
    counts = [result.rounds for result in results]
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
        data=tuple(dict.fromkeys(r.data or "unnamed data" for r in results)),
        rounds=(min(counts), max(counts)),
        is_personal=any(result.is_personal for result in results),
        groups=tuple(
            _by_group(grouping, firsts, seconds, seeds, next(iter(found))) for grouping in groupings
        ),
    )


def _example_scores(
    folders: Sequence[Path],
) -> tuple[Predictions, NDArray[np.float64], tuple[Grouping, ...]]:
    """Return the first run's predictions, each run's scores and the groupings of all runs.

    The scores have the shape (runs, N).
    """
    known = predictions_of(folders[0])
    scores, groupings = [], known.groupings
    for folder in folders:
        said = predictions_of(folder)
        groupings = tuple(g for g in groupings if any(g.is_same(other) for other in said.groupings))
        if not np.array_equal(said.labels, known.labels) or said.task != known.task:
            raise RequestError(f"{folder} was tested on other images than {folders[0]}.")
        scores.append(said.task.example_scores(said.values, said.labels))
    return known, np.stack(scores), groupings


def _by_group(
    grouping: Grouping,
    firsts: NDArray[np.float64],
    seconds: NDArray[np.float64],
    seeds: tuple[int, ...],
    metric: str,
) -> GroupDifferences:
    """Return the differences of a grouping's values, from scores of shape (S, N)."""
    ends = bootstrap_groups(firsts - seconds, grouping.codes, np.random.default_rng(0))
    rows = []
    for code, value in enumerate(grouping.values):
        chosen = grouping.codes == code
        mean, low, high = ends[code]
        rows.append(
            GroupDifference(
                value=value,
                accuracies=(float(firsts[:, chosen].mean()), float(seconds[:, chosen].mean())),
                difference=Difference(
                    metric=metric,
                    mean=mean,
                    low=low,
                    high=high,
                    seeds=seeds,
                    images=int(chosen.sum()),
                ),
            )
        )
    return GroupDifferences(name=grouping.name, rows=tuple(rows))


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
    classes = np.unique(labels)
    of_class = (labels[:, None] == classes).astype(np.float64)  # (N, K)
    accuracies, balanced = np.empty(draws), np.empty(draws)
    for d, (weights, counts) in enumerate(_resamples(gains.shape, rng, draws)):
        gain = (weights @ gains) * counts  # (N,)
        totals = counts @ of_class  # a class that was not drawn has no sensitivity
        accuracies[d] = gain.sum() / len(gain)
        balanced[d] = ((gain @ of_class)[totals > 0] / totals[totals > 0]).mean()
    mean = gains.mean(0)
    means = {
        "accuracy": (float(mean.mean()), accuracies),
        "balanced accuracy": (float(((mean @ of_class) / of_class.sum(0)).mean()), balanced),
    }
    found = {}
    for metric, (middle, drawn) in means.items():
        low, high = np.quantile(drawn, ENDS)
        found[metric] = (middle, float(low), float(high))
    return found


def bootstrap_groups(
    gains: NDArray[np.float64],
    codes: NDArray[np.int64],
    rng: np.random.Generator,
) -> list[tuple[float, float, float]]:
    """Return mean and interval of the difference on the images of each group.

    The draws are those of `bootstrap`, and a group has its images among them.

    Args:
        gains: Shape (S, N), by seed and image, as for `bootstrap`.
        codes: Group of each image, from 0 to G - 1, each at least once, shape (N,).
        rng: Source of the draws.
    """
    groups = int(codes.max()) + 1
    drawn = np.full((DRAWS, groups), np.nan)
    for d, (weights, counts) in enumerate(_resamples(gains.shape, rng, DRAWS)):
        totals = np.bincount(codes, weights=counts, minlength=groups)
        sums = np.bincount(codes, weights=(weights @ gains) * counts, minlength=groups)
        # A group that was not drawn has no difference.
        np.divide(sums, totals, out=drawn[d], where=totals > 0)
    found = []
    for code in range(groups):
        low, high = np.nanquantile(drawn[:, code], ENDS)
        found.append((float(gains[:, codes == code].mean()), float(low), float(high)))
    return found


def _resamples(
    shape: tuple[int, ...], rng: np.random.Generator, draws: int
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """Yield the weights of the seeds, shape (S,), and the counts of the images, shape (N,)."""
    seeds, images = shape
    for _ in range(draws):
        weights = np.bincount(rng.integers(seeds, size=seeds), minlength=seeds) / seeds
        yield weights, np.bincount(rng.integers(images, size=images), minlength=images)


def _runs(folder: Path) -> dict[int, Path]:
    """Return a folder's finished runs by seed.

    The folder is a cell's, or that of one run.
    """
    places = [folder, *sorted(folder.glob("seed-*"))] if folder.is_dir() else []
    found = {}
    for place in places:
        if (place / RESULT).exists():
            found[stored_number(place / "study.toml", "seed")] = place
    if not found:
        require_run_folder(folder)
        raise RequestError(f"{folder} holds no finished run; give a run's folder or a cell's.")
    return found


def _result(folder: Path) -> ResultFile:
    found = read_result(folder / RESULT, ResultFile)
    if found is None:
        raise RequestError(f"{folder} holds no finished run any more; compare again.")
    return found
