"""Where a round happens: an attempt is opened, its messages are carried, and it is closed."""

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
    """What a round came to.

    Attributes:
        outcome: Of the attempt that succeeded.
        stages: The exchanges of that attempt.
        exchange_seconds: Inside the exchanges of all attempts at the round.
    """

    outcome: AttemptResult
    stages: tuple[StageStats, ...]
    exchange_seconds: float


@define(eq=False, kw_only=True)
class RoundRunner:
    """Moves the weights once a round, with as many attempts as the study has left.

    Guarantees:
        No two attempts have one number, `start_attempt` is called before anyone is asked anything
        for an attempt, and there are never more of them than privacy was planned for.

    Attributes:
        setting: What every party knows.
        coordinator: Holds the weights.
        exchange: Carries messages.
        deadline: Seconds that a site has for each answer, or None.
        target_rounds: Rounds that are to be completed.
        attempt: Number of the next attempt.
        start_attempt: Told the round and the attempt that is about to begin; it may raise, to stop
            it.
        notify: Tells observers.
    """

    setting: RunConfig
    coordinator: Coordinator
    exchange: EngineSession
    deadline: float | None
    target_rounds: int
    attempt: int
    start_attempt: Callable[[int, int], None]
    notify: Callable[[Event], None]

    def run_round(self, number: int) -> RoundResult:
        """Round `number`, from 0.

        Raises:
            RunError: Too few sites answered, and no retry is left.
        """
        seconds = 0.0
        while True:
            self.start_attempt(number, self.attempt)
            sites = select_cohort(self.setting, number, self.attempt)
            self.coordinator.begin_attempt(number, self.attempt, sites)
            self.attempt += 1
            stages = self._run_stages(number)
            seconds += sum(stage.seconds for stage in stages)
            try:
                outcome = self.coordinator.finish_attempt()
            except TooFewSitesError as error:
                self._tell_failures(number, str(error), stages)
                if self.setting.cohort.attempts - self.attempt < self.target_rounds - number:
                    raise RunError(f"round {number + 1} failed: {error}") from error
                continue
            for failure in outcome.failures:
                self.notify(failure)
            return RoundResult(outcome=outcome, stages=stages, exchange_seconds=seconds)

    def _run_stages(self, number: int) -> tuple[StageStats, ...]:
        """Carry an attempt's messages until nothing is left to ask; what each exchange took."""
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


def select_cohort(setting: RunConfig, number: int, attempt: int) -> tuple[SiteId, ...]:
    """The sites that an attempt at round `number` asks: a public choice, and no amplification."""
    cohort = setting.cohort
    if cohort.cohort_size == cohort.sites:
        return tuple(range(cohort.sites))
    rng = setting.seeds.generator("cohort", number, attempt)
    return tuple(sorted(rng.choice(cohort.sites, cohort.cohort_size, replace=False).tolist()))
