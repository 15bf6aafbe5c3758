"""Intervals of an evaluation before it is paid for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from attrs import frozen

from cohortium.errors import StudyError
from cohortium.statistics.noise import noise_of_sum
from cohortium.statistics.statistic import MeasuredExamples, TaskScores
from cohortium.study.measurement import SITE

if TYPE_CHECKING:
    from cohortium.data.estimates import Estimate
    from cohortium.privacy.guarantee import Guarantee
    from cohortium.runs.prepare import PreparedStudy
    from cohortium.statistics.statistic import Statistic

MADE_UP = 400
"""Made-up examples whose rows stand for those of all sites."""


@frozen(kw_only=True)
class ExpectedInterval:
    """Half-width of the interval of one score.

    Attributes:
        metric: Key of the metric.
        name: Class, finding or tissue that it describes.
        group: Group of examples that it describes.
        noise: Half-width for noise alone.
        both: Half-width for sampling and noise.
        is_hidden: Whether the noise hides the score.
    """

    metric: str
    name: str
    group: str
    noise: float
    both: float
    is_hidden: bool

    @classmethod
    def of(cls, estimate: Estimate) -> ExpectedInterval:
        """Return the half-widths of an estimate."""
        return cls(
            metric=estimate.metric,
            name=estimate.name,
            group=estimate.group,
            noise=(estimate.noise_high - estimate.noise_low) / 2,
            both=(estimate.high - estimate.low) / 2,
            is_hidden=estimate.is_hidden,
        )


@frozen(kw_only=True)
class EvaluationForecast:
    """Forecast of an evaluation.

    Attributes:
        releases: Number of evaluations, which the guarantee covers together.
        guarantee: Guarantee of the evaluation, or None without privacy.
        examples: Declared test examples over all sites.
        rows: Number of rows in the sum: one for each example, or for each patient if patients are
            protected.
        cells: Number of values that are summed.
        noise: Standard deviation of the noise on each value, if all sites contribute.
        intervals: Expected intervals, with as many examples of each kind.
        smallest_group: Fewest examples whose main score the noise does not hide.  None if it hides
            the score of all examples.
    """

    releases: int
    guarantee: Guarantee | None
    examples: int
    rows: int
    cells: int
    noise: float
    intervals: tuple[ExpectedInterval, ...]
    smallest_group: int | None

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return attrs.asdict(self)


def forecast_evaluation(prepared: PreparedStudy) -> EvaluationForecast:
    """Return the forecast of a prepared evaluation.

    It reads no data: the rows are those of made-up labels and of outputs that guess.

    Raises:
        StudyError: The study measures no scores.
    """
    run_config, measurement = prepared.run_config, prepared.federation.measurement
    statistic = run_config.statistic
    if statistic is None or measurement is None or measurement.of != "scores":
        raise StudyError("the study evaluates nothing; add a table [evaluation].")
    sites = run_config.federation_spec.sites
    noise, examples = noise_of_sum(run_config.plan.guarantee, sites), run_config.spec.examples
    rows = run_config.measured_units
    sums = _mean_row(prepared, statistic) * rows
    groups = len(measurement.parts or run_config.spec.task.score_parts) + len(measurement.by)
    return EvaluationForecast(
        releases=run_config.federation_spec.rounds,
        guarantee=run_config.plan.guarantee,
        examples=examples,
        rows=rows,
        cells=len(statistic.cells),
        noise=noise,
        intervals=tuple(map(ExpectedInterval.of, statistic.estimate(sums, noise))),
        smallest_group=_smallest_group(prepared, noise * math.sqrt(groups)),
    )


def _mean_row(prepared: PreparedStudy, statistic: Statistic) -> np.ndarray[Any, Any]:
    """Return the mean row of made-up examples, shape (M,)."""
    import torch

    run_config = prepared.run_config
    spec, rng = run_config.spec, np.random.default_rng(0)
    labels = torch.from_numpy(spec.task.sample_labels(spec.size, MADE_UP, rng))
    outputs = torch.from_numpy(rng.standard_normal((MADE_UP, *spec.output_shape)))
    groups = {column.name: len(column.values) for column in spec.groups}
    groups[SITE] = run_config.federation_spec.sites
    measured = MeasuredExamples(
        inputs=torch.zeros(MADE_UP, *spec.shape),
        predictions=spec.task.predict(outputs),
        labels=labels,
        groups={c: torch.from_numpy(np.arange(MADE_UP) % n) for c, n in groups.items()},
    )
    rows: np.ndarray[Any, Any] = statistic.measure(measured).double().mean(0).numpy()
    return rows


def _smallest_group(prepared: PreparedStudy, noise: float) -> int | None:
    """Return the fewest examples whose main score `noise` does not hide."""
    spec, most = prepared.run_config.spec, prepared.run_config.measured_units
    main = TaskScores.of(spec, spec.task.score_parts[0])
    row = _mean_row(prepared, main)

    def hides(examples: int) -> bool:
        return main.estimate(row * examples, noise)[0].is_hidden

    if hides(most):
        return None
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if hides(middle) else (low, middle)
    return high
