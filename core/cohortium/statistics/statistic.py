"""Statistic: a sum over examples of rows with bounded norm, and estimates from it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import attrs
import numpy as np
from attrs import field, frozen

from cohortium.data.estimates import Ratio, mean_ratio, of_group, share_ratio

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from cohortium.data.estimates import Estimate
    from cohortium.data.examples import DataSpec
    from cohortium.data.task import Task


@frozen(eq=False, kw_only=True)
class MeasuredExamples:
    """Examples of one site, with predictions.

    Attributes:
        inputs: Inputs of the network, shape (B, …).
        predictions: The task's predictions, shape (B, …).
        labels: Labels, shape (B, …), in the form of the task.
        groups: The group of each example, by column of groups, shape (B,) each.
    """

    inputs: Tensor = field(repr=False)
    predictions: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    groups: dict[str, Tensor] = field(repr=False)


@runtime_checkable
class Statistic(Protocol):
    """A sum over examples, which the sites release as they release a gradient.

    Guarantees:
        Each row of `measure` has a Euclidean norm of at most 1.
        Row i depends on example i alone.
        With an exact sum, `estimate` gives the exact values.
    """

    @property
    def cells(self) -> tuple[str, ...]:
        """Names of the M values of a row."""
        ...

    def measure(self, examples: MeasuredExamples) -> Tensor:
        """Return a row for each example, shape (B, M)."""
        ...

    def estimate(self, sums: NDArray[np.float64], noise: float) -> tuple[Estimate, ...]:
        """Return estimates with intervals.

        Args:
            sums: Sum of the rows over all examples, shape (M,).
            noise: Standard deviation of the noise on each value of the sum.
        """
        ...


@frozen
class TaskScores:
    """One part of the scores of a task.

    Attributes:
        task: The task.
        part: One of its `score_parts`.
        cells: Names of the cells.
    """

    task: Task
    part: str
    cells: tuple[str, ...]

    @classmethod
    def of(cls, spec: DataSpec, part: str) -> TaskScores:
        """Return the statistic for the data of `spec`."""
        import torch

        task = spec.task
        labels = torch.from_numpy(task.sample_labels(spec.size, 1, np.random.default_rng(0)))
        outputs = torch.zeros(1, *spec.output_shape)
        width = task.measure(part, task.predict(outputs), labels).shape[1]
        return cls(task, part, tuple(f"{part} {cell}" for cell in range(width)))

    def measure(self, examples: MeasuredExamples) -> Tensor:
        """Return the task's rows."""
        return self.task.measure(self.part, examples.predictions, examples.labels)

    def estimate(self, sums: NDArray[np.float64], noise: float) -> tuple[Estimate, ...]:
        """Return the task's estimates."""
        return self.task.summarize(self.part, sums, noise)


@frozen
class ByGroup:
    """A statistic for each group of a column of groups.

    An example counts in its own group alone, so a row keeps its norm.

    Attributes:
        statistic: The statistic of each group.
        column: Name of the column.
        names: Names of its groups.
    """

    statistic: Statistic
    column: str
    names: tuple[str, ...]

    @property
    def cells(self) -> tuple[str, ...]:
        """The cells of each group in turn."""
        return tuple(
            f"{self._label(n)}, {cell}" for n in self.names for cell in self.statistic.cells
        )

    def measure(self, examples: MeasuredExamples) -> Tensor:
        """Return rows that are zero outside the example's group.

        An example without a group has a row of zeros.
        """
        from torch.nn import functional

        rows = self.statistic.measure(examples)
        group = examples.groups[self.column]
        known = group >= 0
        held = functional.one_hot(group.clamp(min=0), len(self.names)) * known[:, None]
        spread: Tensor = (held[:, :, None] * rows[:, None, :]).flatten(1)
        return spread

    def estimate(self, sums: NDArray[np.float64], noise: float) -> tuple[Estimate, ...]:
        """Return the main estimate of each group."""
        found: list[Estimate] = []
        for name, own in zip(self.names, sums.reshape(len(self.names), -1), strict=True):
            found += of_group(self.statistic.estimate(own, noise)[:1], self._label(name))
        return tuple(found)

    def _label(self, name: str) -> str:
        return f"{self.column} {name}" if self.column == "site" else f"{self.column}: {name}"


@frozen
class Stacked:
    """Several statistics of one row, with equal shares of its squared norm.

    Attributes:
        statistics: The statistics.
    """

    statistics: tuple[Statistic, ...]

    @property
    def cells(self) -> tuple[str, ...]:
        """The cells of each statistic in turn."""
        return tuple(cell for each in self.statistics for cell in each.cells)

    @property
    def _scale(self) -> float:
        return math.sqrt(len(self.statistics))

    def measure(self, examples: MeasuredExamples) -> Tensor:
        """Return the statistics' rows side by side."""
        import torch

        rows = [each.measure(examples).double() for each in self.statistics]
        scaled: Tensor = torch.cat(rows, 1) / self._scale
        return scaled

    def estimate(self, sums: NDArray[np.float64], noise: float) -> tuple[Estimate, ...]:
        """Return the estimates of each statistic in turn."""
        ends = np.cumsum([len(each.cells) for each in self.statistics])[:-1]
        parts = np.split(sums * self._scale, ends)
        return tuple(
            estimate
            for each, own in zip(self.statistics, parts, strict=True)
            for estimate in each.estimate(own, noise * self._scale)
        )


@frozen
class ChannelMoments:
    """Mean and standard deviation of each channel, over all pixels of all images.

    The inputs are images in [0, 1], shape (B, C, …).

    Attributes:
        channels: C.
    """

    channels: int

    @property
    def cells(self) -> tuple[str, ...]:
        """Means, mean squares and one."""
        names = range(self.channels)
        return (*(f"mean {c}" for c in names), *(f"square {c}" for c in names), "images")

    def measure(self, examples: MeasuredExamples) -> Tensor:
        """Return each image's means and mean squares by channel, and one.

        Intensities are moved to [-1, 1] first, where their squares say most.
        """
        import torch

        flat = 2 * examples.inputs.double().flatten(2) - 1
        ones = flat.new_ones(len(flat), 1)
        rows = torch.cat([flat.mean(2), flat.square().mean(2), ones], 1)
        scaled: Tensor = rows / math.sqrt(rows.shape[1])
        return scaled

    def estimate(self, sums: NDArray[np.float64], noise: float) -> tuple[Estimate, ...]:
        """Return mean and standard deviation of each channel."""
        scale = math.sqrt(len(sums))
        values, noise = sums * scale, noise * scale
        means, squares = values[:-1].reshape(2, -1)
        found: list[Estimate] = []
        for channel, (total, square) in enumerate(zip(means, squares, strict=True)):
            middle = total / values[-1] if values[-1] > 0 else 0.0
            # Values in [-1, 1] vary most at its ends, and so do their squares in [0, 1].
            first = mean_ratio(total, values[-1], noise=noise, spread=1 - min(middle**2, 1.0))
            second = mean_ratio(square, values[-1], noise=noise, spread=0.25)
            pair = (
                first.estimate("mean", str(channel), lowest=-1.0),
                second.estimate("square", str(channel)),
            )
            found += [_moved(pair[0]), _deviation(*pair)]
        return tuple(found)


def _moved(mean: Estimate) -> Estimate:
    """Return the mean of intensities in [0, 1] from that of intensities in [-1, 1]."""

    def back(value: float) -> float:
        return (value + 1) / 2

    return attrs.evolve(
        mean,
        value=None if mean.value is None else back(mean.value),
        low=back(mean.low),
        high=back(mean.high),
        noise_low=back(mean.noise_low),
        noise_high=back(mean.noise_high),
        lowest=0.0,
    )


def _deviation(mean: Estimate, square: Estimate) -> Estimate:
    """Return the standard deviation from estimates of a mean and of a mean square."""

    def root(square: float, mean: float) -> float:
        return math.sqrt(min(max(square - mean * mean, 0.0), 1.0)) / 2

    def ends(low: float, high: float) -> tuple[float, float]:
        """Return the least and the greatest distance of a mean from zero."""
        nearest = 0.0 if low <= 0 <= high else min(abs(low), abs(high))
        return nearest, max(abs(low), abs(high))

    is_known = mean.value is not None and square.value is not None
    near, far = ends(mean.low, mean.high)
    noise_near, noise_far = ends(mean.noise_low, mean.noise_high)
    return attrs.evolve(
        square,
        metric="deviation",
        value=root(square.value or 0.0, mean.value or 0.0) if is_known else None,
        low=root(square.low, far),
        high=root(square.high, near),
        noise_low=root(square.noise_low, noise_far),
        noise_high=root(square.noise_high, noise_near),
        highest=0.5,
    )


@frozen
class LabelShares:
    """Number of images, and the share of them that has each name of the task.

    Attributes:
        task: The task.
    """

    task: Task

    @property
    def cells(self) -> tuple[str, ...]:
        """Images with and without each name."""
        return tuple(f"{name}, {k}" for name in self.task.names for k in ("with", "without"))

    def measure(self, examples: MeasuredExamples) -> Tensor:
        """Return the presence and absence of each name, over the root of their number."""
        import torch

        labels = examples.labels.cpu().numpy()
        held = np.stack([self.task.counts(labels[i : i + 1]) for i in range(len(labels))]) > 0
        rows = np.stack([held, ~held], 2).reshape(len(labels), -1) / math.sqrt(held.shape[1])
        return torch.from_numpy(rows).to(examples.labels.device)

    def estimate(self, sums: NDArray[np.float64], noise: float) -> tuple[Estimate, ...]:
        """Return the number of images and the shares."""
        names = self.task.names
        scale = math.sqrt(len(names))
        tables, noise = (sums * scale).reshape(-1, 2), noise * scale
        # Each name's table sums to the number of images, so their mean has the least noise.
        images, variance = tables.sum() / len(names), 2 * noise**2 / len(names)
        count = Ratio(part=images, whole=1.0, noise=(variance, 0.0, 0.0))
        shares = [
            share_ratio(held, lacks, noise=noise).estimate("share", name)
            for name, (held, lacks) in zip(names, tables, strict=True)
        ]
        return (count.estimate("images", highest=None), *shares)


def scores_statistic(
    spec: DataSpec, parts: tuple[str, ...], groups: Mapping[str, tuple[str, ...]]
) -> Statistic:
    """Return the statistic of a task's scores.

    Args:
        spec: Public facts about the data.
        parts: Parts of the scores, or () for all of them.
        groups: Names of the groups, by column, whose main part is measured as well.
    """
    main = TaskScores.of(spec, spec.task.score_parts[0])
    chosen = [TaskScores.of(spec, part) for part in parts or spec.task.score_parts]
    return Stacked((*chosen, *(ByGroup(main, column, names) for column, names in groups.items())))


def images_statistic(spec: DataSpec) -> Statistic:
    """Return the statistic of images and labels."""
    return Stacked((ChannelMoments(spec.channels), LabelShares(spec.task)))
