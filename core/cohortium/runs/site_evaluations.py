"""Evaluations at the sites of one model, while it is trained and afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define, field, frozen

from cohortium import parameters
from cohortium.roles.events import SitesEvaluated
from cohortium.runs.measured import measured_sum

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from cohortium.roles.protocols import Observer
    from cohortium.runs.driver import RunDriver
    from cohortium.runs.prepare import PreparedStudy
    from cohortium.runs.result import Result
    from cohortium.runs.run_state import RunState


@frozen(eq=False)
class EvaluatedWeights:
    """Weights to evaluate.

    Attributes:
        weights: The weights by name.
        rounds: Rounds of training that they had.
    """

    weights: Mapping[str, Tensor] = field(repr=False)
    rounds: int


@frozen(eq=False, kw_only=True)
class DueEvaluations:
    """Evaluations of a model while it is trained, or after it.

    Attributes:
        prepared: The prepared evaluation, whose rounds are the evaluations.
        every: Rounds of training between two evaluations.  0 evaluates the last weights alone.
        observers: Observers of the evaluation's run.
    """

    prepared: PreparedStudy
    every: int
    observers: Sequence[Observer]


@define(eq=False)
class SiteEvaluations:
    """The run of an evaluation, which continues by one round for each model.

    Guarantees:
        The weights of one round of training are evaluated once.
        If attempts were lost and no retry is left for them, the latest weights are evaluated, and
        earlier ones are left out.

    Attributes:
        driver: Driver of the evaluation's run.
        every: Rounds of training between two evaluations.  0 evaluates the last weights alone.
    """

    driver: RunDriver
    every: int = 0

    def begin(self, site_warnings: tuple[str, ...] = ()) -> None:
        """Begin or continue the evaluation's run."""
        with self.driver.reported():
            self.driver.begin(site_warnings)

    def bring_up_to_date(self, trained: RunState) -> SitesEvaluated | None:
        """Evaluate the weights between two rounds of training, if that is due.

        Args:
            trained: State of the training.

        Returns:
            The event of a new evaluation, or None.
        """
        rounds = len(trained.history)
        if not self.every or rounds % self.every or self._last == rounds:
            return None
        # Of this round, of those that follow, and of the last one.
        ahead = -(-(trained.target_rounds - rounds) // self.every) + 1
        if ahead > self._left:
            return None
        with self.driver.reported():
            self._load(parameters.state_dict(trained.coordinator.net))
            done = self.driver.run_round(rounds)
        measured = measured_sum(self.driver.prepared.run_config, done)
        return SitesEvaluated(
            rounds=rounds,
            contributors=measured.contributors,
            main=measured.estimates[0],
            guarantee_so_far=done.guarantee_so_far,
        )

    def finish(self, final: EvaluatedWeights) -> Result:
        """Evaluate the final weights, if an attempt is left for them, and end the run."""
        with self.driver.reported():
            run_state = self.driver.run_state
            if self._left and not (run_state.history and self._last == final.rounds):
                self._load(final.weights)
                self.driver.run_round(final.rounds)
            return self.driver.end()

    @property
    def _last(self) -> int | None:
        """Rounds of training of the weights that were evaluated last."""
        history = self.driver.run_state.history
        return history[-1].trained_rounds if history else None

    @property
    def _left(self) -> int:
        """Number of evaluations for which attempts are left."""
        return self.driver.run_state.target_rounds - len(self.driver.run_state.history)

    def _load(self, weights: Mapping[str, Tensor]) -> None:
        self.driver.run_state.coordinator.load_weights(weights)
