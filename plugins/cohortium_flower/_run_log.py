"""The coordinator's log of a run, one line a round, which `flwr run --stream` shows."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from cohortium.plugin import AttemptFailed, RoundCompleted, RunStarted

if TYPE_CHECKING:
    from collections.abc import Callable

    from cohortium.plugin import Event

_LOG = logging.getLogger("flwr")


@frozen
class RunLog:
    """Writer of a run's events to Flower's log."""

    def start_run(self) -> Callable[[Event], None]:
        """Return a writer for one run."""
        return _Lines()


@define
class _Lines:
    """Conversion of a run's events to lines."""

    rounds: int = field(init=False, default=0)

    def __call__(self, event: Event) -> None:
        """Write the line of `event`, if it has one."""
        match event:
            case RunStarted():
                self.rounds = event.rounds
                done = f", {len(event.history)} of them done" if event.history else ""
                promise = event.guarantee or "no privacy guarantee"
                _LOG.info(
                    "cohortium: %d sites, %d rounds%s; %s", event.sites, event.rounds, done, promise
                )
            case RoundCompleted():
                spent = event.guarantee_so_far
                parts = [
                    f"{len(event.contributors)} sites in the sum",
                    *([f"{len(event.dropped)} left out"] if event.dropped else ()),
                    *([] if spent is None else [f"ε {spent.epsilon:.2f} so far"]),
                ]
                _LOG.info(
                    "cohortium: round %d/%d: %s", event.round + 1, self.rounds, ", ".join(parts)
                )
            case AttemptFailed():
                _LOG.warning("cohortium: round %d failed once: %s", event.round + 1, event.reason)
            case _:
                pass
