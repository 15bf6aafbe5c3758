"""Statistics that the sites of a run have released."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cohortium.runs.result import Measured, MeasuredRound
from cohortium.statistics.noise import noise_of_sum

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cohortium.roles.events import RoundCompleted
    from cohortium.rounds.run_config import RunConfig


def measured_sum(run_config: RunConfig, event: RoundCompleted) -> Measured:
    """Return the sum of a round, with estimates.

    Args:
        run_config: Configuration of a run whose sites release a statistic.
        event: The completed round.
    """
    statistic = run_config.statistic
    assert statistic is not None, "the sites train"
    noise = noise_of_sum(run_config.plan.guarantee, len(event.contributors))
    return Measured(
        contributors=len(event.contributors),
        examples=run_config.spec.examples,
        noise=noise,
        cells=statistic.cells,
        sums=event.measured,
        estimates=statistic.estimate(np.array(event.measured), noise),
    )


def measured_by_round(
    run_config: RunConfig, history: Sequence[RoundCompleted]
) -> tuple[MeasuredRound, ...]:
    """Return the estimates of each round, or none where the sites train."""
    if run_config.statistic is None:
        return ()
    return tuple(
        MeasuredRound(
            trained_rounds=event.trained_rounds,
            contributors=found.contributors,
            noise=found.noise,
            estimates=found.estimates,
        )
        for event in history
        for found in [measured_sum(run_config, event)]
    )
