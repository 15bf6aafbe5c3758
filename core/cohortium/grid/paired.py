"""The difference between two cells, with an interval that knows both seeds and test images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

from cohortium.errors import StudyError
from cohortium.record import predictions_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

DRAWS = 10_000
"""Of the bootstrap; the ends of a 95 % interval are then good to about a fiftieth of its width."""

COVERAGE = 0.95


@frozen(kw_only=True)
class Difference:
    """First minus second, over the seeds that both have and the test images.

    Attributes:
        metric: Such as "accuracy".
        mean: The difference.
        low: Lower end of the interval.
        high: Its upper end.
        seeds: That were compared.
        images: That were compared.
    """

    metric: str
    mean: float
    low: float
    high: float
    seeds: tuple[int, ...]
    images: int

    @property
    def is_told_apart(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        """For people, in points."""
        verdict = "" if self.is_told_apart else "; not told apart"
        seeds = "1 seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
        return (
            f"{self.metric}: {100 * self.mean:+.2f} points, {COVERAGE:.0%} interval "
            f"{100 * self.low:+.2f} to {100 * self.high:+.2f} "
            f"({seeds}, {self.images} images{verdict})"
        )


def compare(first: Path, second: Path) -> tuple[Difference, ...]:
    """How much better `first` is than `second`, in accuracy and balanced accuracy.

    A paired bootstrap: seeds and images are drawn with replacement, independently of one another
    and alike for both cells, so that what both find hard does not widen the interval.  Drawing
    along both ways at once errs on the side of too wide (Owen 2007, "The pigeonhole bootstrap").
    With one seed the interval knows of the images alone.

    Args:
        first: A cell's folder, or one run's.
        second: Another's.

    Raises:
        StudyError: They have no seed in common, or were tested on different images.
    """
    one, other = _runs(first), _runs(second)
    seeds = tuple(sorted(one.keys() & other.keys()))
    if not seeds:
        raise StudyError(f"{first} and {second} have no finished run with the same seed.")
    labels = predictions_of(one[seeds[0]]).labels
    gains = []
    for seed in seeds:
        hits = []
        for folder in (one[seed], other[seed]):
            said = predictions_of(folder)
            if not np.array_equal(said.labels, labels):
                raise StudyError(f"{folder} was tested on other images than {one[seeds[0]]}.")
            hits.append(said.probabilities.argmax(1) == labels)
        gains.append(hits[0].astype(np.float64) - hits[1])
    found = bootstrap(np.stack(gains), labels, np.random.default_rng(0))
    return tuple(
        Difference(metric=metric, mean=mean, low=low, high=high, seeds=seeds, images=len(labels))
        for metric, (mean, low, high) in found.items()
    )


def bootstrap(
    gains: NDArray[np.float64],
    labels: NDArray[np.int64],
    rng: np.random.Generator,
    draws: int = DRAWS,
) -> dict[str, tuple[float, float, float]]:
    """Mean and interval of each metric's difference.

    Args:
        gains: By seed and image, 1 where only the first was right, -1 where only the second was,
            else 0; shape (S, N).
        labels: Of the images, shape (N,).
        rng: Draws the samples.
        draws: How many.
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
    """The finished runs in a cell's folder, or the one that it is itself, by seed."""
    places = [folder, *sorted(folder.glob("seed-*"))] if folder.is_dir() else []
    found = {}
    for place in places:
        if (place / "result.json").exists():
            found[_seed(place)] = place
    if not found:
        raise StudyError(f"{folder} holds no finished run; give a run's folder or a cell's.")
    return found


def _seed(folder: Path) -> int:
    from cohortium import tables as toml

    study = toml.read(folder / "study.toml", what="the study")
    return int(study.get("federation", {}).get("seed", 1))
