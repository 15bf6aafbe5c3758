"""Progress of a run, computed from its events for both views."""

from __future__ import annotations

import datetime as dt
import time
from typing import TYPE_CHECKING

from attrs import define, field

from cohortium.plugin import AttemptFailed, RoundCompleted, RunStarted, SiteReplied, metric_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from cohortium.plugin import Event, Guarantee, Scores

RECENT = 10
"""Number of rounds whose pace gives the estimate of the time left."""


def format_scores(scores: Scores) -> list[str]:
    """Return the loss, if there is one, and the main metric."""
    loss = [] if scores.loss is None else [f"loss {scores.loss:.3f}"]
    main = scores.metrics[scores.main_metric]
    return [
        *loss, f"{metric_name(scores.main_metric)} {'unknown' if main is None else f'{main:.1%}'}"
    ]  # fmt: skip


@define
class RunProgress:
    """Known state of a run so far.

    Attributes:
        clock: Seconds, from any moment on.
        rounds: Number of rounds of the run.
        done: Number of completed rounds.
        promise: Guarantee of the whole run, or None.
        spent: ε so far.
        answered: Sites that have answered in the present exchange, and how many were asked.
        exchange: Number of the present exchange, from 0.
        dropped: Contributions that were asked for and did not enter a sum, so far.
        failed: Attempts that failed.
        scores: The latest scores.
        main_scores: The main metric by round, without rounds whose images do not determine it.
        plan_state: State of the privacy plan after the last round, such as an adaptive clip norm.
    """

    clock: Callable[[], float] = time.monotonic
    rounds: int = 0
    done: int = 0
    promise: Guarantee | None = None
    spent: float = 0.0
    answered: tuple[int, int] = (0, 0)
    exchange: int = 0
    dropped: int = 0
    failed: int = 0
    scores: Scores | None = None
    main_scores: list[float] = field(factory=list)
    plan_state: tuple[float, ...] = ()
    _ends: list[float] = field(factory=list)

    def take(self, event: Event) -> None:
        """Take `event` into account."""
        match event:
            case RunStarted():
                self.rounds, self.promise = event.rounds, event.guarantee
                for finished in event.history:
                    self._finish(finished)
                self.answered = (0, event.sites)
                self._ends = [self.clock()]
            case SiteReplied():
                self.answered = (event.num_replied, event.num_asked)
                self.exchange = event.stage
            case AttemptFailed():
                self.failed += 1
                self.answered = (0, self.answered[1])
            case RoundCompleted():
                self._finish(event)

    def _finish(self, event: RoundCompleted) -> None:
        self.done = event.round + 1
        self.dropped += len(event.dropped)
        self.plan_state = event.plan_state
        present = len(event.contributors)
        self.answered, self.exchange = (present, present + len(event.dropped)), 0
        self._ends = [*self._ends, self.clock()][-RECENT - 1 :]
        if event.guarantee_so_far is not None:
            self.spent = event.guarantee_so_far.epsilon
        if event.scores is not None:
            self.scores = event.scores
            main = event.scores.metrics[event.scores.main_metric]
            self.main_scores += [] if main is None else [main]

    @property
    def left(self) -> dt.timedelta | None:
        """Estimate of the time left, or None before the first round.

        It assumes the pace of the last rounds.
        """
        if len(self._ends) < 2:  # noqa: PLR2004 - a beginning and an end
            return None
        pace = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        since = self.clock() - self._ends[-1]
        return dt.timedelta(seconds=max(0, round(pace * (self.rounds - self.done) - since)))
