"""One round: begins an attempt, exchanges its messages, and finishes it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from attrs import define, frozen

from cohortium.errors import RunError, TooFewSitesError
from cohortium.roles.events import AttemptFailed, SiteReplied, StageStats

if TYPE_CHECKING:
    from collections.abc import Callable

    from cohortium.roles.events import Event
    from cohortium.roles.sessions import EngineSession
    from cohortium.roles.values import SiteId, StageRequests
    from cohortium.rounds.coordinator import AttemptResult, Coordinator
    from cohortium.rounds.run_config import RunConfig


@frozen(kw_only=True)
class RoundResult:
    """Result of one round.

    Attributes:
        outcome: Result of the attempt that succeeded.
        stages: The exchanges of that attempt.
        exchange_seconds: Time spent in exchanges, summed over all attempts at the round.
    """

    outcome: AttemptResult
    stages: tuple[StageStats, ...]
    exchange_seconds: float


@define(eq=False, kw_only=True)
class RoundRunner:
    """Runner of rounds, with as many attempts as the study has left.

    Guarantees:
        No two attempts have the same number.
        `start_attempt` is called before any site receives a request of an attempt.
        There are never other attempts than privacy was planned for.

    Attributes:
        run_config: The run configuration.
        coordinator: The coordinator, which has the weights.
        exchange: The engine's session, which carries messages.
        deadline: Seconds that a site has for each reply, or None.
        target_rounds: Number of rounds to complete.
        attempt_rounds: The round of each attempt so far.
        start_attempt: Called with the round and the attempt before it begins. It may raise to stop
            the attempt.
        notify: Called with each event for the observers.
    """

    run_config: RunConfig
    coordinator: Coordinator
    exchange: EngineSession
    deadline: float | None
    target_rounds: int
    attempt_rounds: list[int]
    start_attempt: Callable[[int, int], None]
    notify: Callable[[Event], None]

    @property
    def attempt(self) -> int:
        """Number of the next attempt."""
        return len(self.attempt_rounds)

    def run_round(self, number: int) -> RoundResult:
        """Run round `number`, counted from 0.

        Raises:
            RunError: Too few sites replied, and no retry is left.
        """
        seconds = 0.0
        while True:
            self.start_attempt(number, self.attempt)
            sites = select_cohort(self.run_config, number, self.attempt)
            self.coordinator.begin_attempt(number, self.attempt, sites)
            self.attempt_rounds.append(number)
            stages = self._run_stages(number)
            seconds += sum(stage.seconds for stage in stages)
            try:
                outcome = self.coordinator.finish_attempt()
            except TooFewSitesError as error:
                self._tell_failures(number, str(error), stages)
                planned = self.run_config.planned_attempts()
                if planned.reachable_rounds(self.attempt_rounds, number) < self.target_rounds:
                    raise RunError(f"round {number + 1} failed: {error}") from error
                continue
            for failure in outcome.failures:
                self.notify(failure)
            return RoundResult(outcome=outcome, stages=stages, exchange_seconds=seconds)

    def _run_stages(self, number: int) -> tuple[StageStats, ...]:
        """Exchange messages until no request is left, and measure each stage."""
        stages: list[StageStats] = []
        while requests := self.coordinator.next_requests():
            stages.append(self._exchange(number, len(stages), requests))
        return tuple(stages)

    def _exchange(self, number: int, turn: int, requests: StageRequests) -> StageStats:
        spent, uploaded = 0.0, 0
        answered: set[SiteId] = set()
        began = time.perf_counter()
        for site, reply in self.exchange.exchange(
            requests.broadcast, requests.per_site, self.deadline
        ):
            spent += time.perf_counter() - began
            uploaded += len(reply)
            if self.coordinator.receive(site, reply):
                answered.add(site)
                self.notify(
                    SiteReplied(
                        round=number,
                        attempt=self.attempt - 1,
                        stage=turn,
                        site=site,
                        num_replied=len(answered),
                        num_asked=len(requests.per_site),
                    )
                )
            began = time.perf_counter()
        return StageStats(
            name=requests.stage,
            num_asked=len(requests.per_site),
            dropped=tuple(sorted(set(requests.per_site) - answered)),
            upload_bytes=uploaded,
            download_bytes=sum(
                len(requests.broadcast) + len(own) for own in requests.per_site.values()
            ),
            seconds=spent + time.perf_counter() - began,
        )

    def _tell_failures(self, number: int, reason: str, stages: tuple[StageStats, ...]) -> None:
        for failure in self.coordinator.failures:
            self.notify(failure)
        self.notify(
            AttemptFailed(round=number, attempt=self.attempt - 1, reason=reason, stages=stages)
        )


def select_cohort(run_config: RunConfig, number: int, attempt: int) -> tuple[SiteId, ...]:
    """Return the sites that an attempt at round `number` asks.

    The choice is public, so it does not amplify privacy.
    """
    federation_spec = run_config.federation_spec
    if federation_spec.cohort_size == federation_spec.sites:
        return tuple(range(federation_spec.sites))
    rng = run_config.seeds.generator("cohort", number, attempt)
    return tuple(
        sorted(
            rng.choice(federation_spec.sites, federation_spec.cohort_size, replace=False).tolist()
        )
    )
