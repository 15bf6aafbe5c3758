"""Values of a comparison: differences with intervals, of all images and by group."""

from __future__ import annotations

from typing import Any

import attrs
from attrs import frozen

from cohortium.data.group_scores import MIN_IMAGES

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
        of = f"{counted(len(self.seeds), 'seed')}, {self.images} images"
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
class GroupDifference:
    """First minus second on the images of one centre, or of one value of a group.

    Attributes:
        value: Name of the centre or of the value. "" if it is not stated.
        accuracies: Mean score of an image, of the first and the second.
        difference: The difference of the two. With fewer than `MIN_IMAGES` images no interval is
            valid.
    """

    value: str
    accuracies: tuple[float, float]
    difference: Difference

    @property
    def has_enough_images(self) -> bool:
        """Whether there are enough images for a valid interval."""
        return self.difference.images >= MIN_IMAGES

    def as_json(self) -> dict[str, Any]:
        """Return plain values, without an interval that is not valid."""
        told = self.difference.as_json()
        if not self.has_enough_images:
            told |= {"low": None, "high": None, "is_told_apart": False}
        return {"value": self.value, "accuracies": self.accuracies, **told}

    def __str__(self) -> str:
        """Return a text for people, in percentage points."""
        first, second = self.accuracies
        named = f"{self.value or 'not stated'}: {first:.2%} and {second:.2%}"
        if self.has_enough_images:
            return f"{named}, {self.difference}"
        return (
            f"{named}, {self.difference.metric}: {100 * self.difference.mean:+.2f} points, no "
            f"interval ({counted(self.difference.images, 'image')}; that takes {MIN_IMAGES})"
        )


@frozen(kw_only=True)
class GroupDifferences:
    """Differences by centre, or by the values of one column of groups.

    Attributes:
        name: Name of the column, or "centre".
        rows: One for each centre or value that has images.
    """

    name: str
    rows: tuple[GroupDifference, ...]

    @property
    def lowest(self) -> GroupDifference | None:
        """The row with the lowest difference, among rows of at least `MIN_IMAGES` images.

        None if fewer than two rows have as many.
        """
        large = [row for row in self.rows if row.has_enough_images]
        if len(large) < 2:  # noqa: PLR2004 - one row is compared with none
            return None
        return min(large, key=lambda row: row.difference.mean)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        lowest = self.lowest
        return {
            "name": self.name,
            "lowest": None if lowest is None else lowest.value,
            "rows": [row.as_json() for row in self.rows],
        }

    def __str__(self) -> str:
        """Return a text for people, with a line for each row."""
        lowest = self.lowest
        lines = [f"by {self.name}:", *(f"  {row}" for row in self.rows)]
        if lowest is not None:
            mean = 100 * lowest.difference.mean
            lines.append(
                f"  lowest difference: {lowest.value or 'not stated'}, {mean:+.2f} points (the "
                "lowest of several is low partly by chance)"
            )
        return "\n".join(lines)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
