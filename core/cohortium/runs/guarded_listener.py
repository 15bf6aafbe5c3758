"""A listener whose faults end no run that has begun.

A private run has spent its ε by its first attempt, and a deployed one cannot be repeated for free.
An observer only reports. So its fault, such as an outage of a tracking server, must not cost a run.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from attrs import define, field

from cohortium.errors import CohortiumError
from cohortium.roles.events import RunStarted
from cohortium.text import elide_middle, escape_control_characters

if TYPE_CHECKING:
    from collections.abc import Callable

    from cohortium.roles.events import Event
    from cohortium.roles.protocols import Observer

_LOG = logging.getLogger(__name__)


@define(eq=False)
class GuardedListener:
    """A listener of an observer.

    Guarantees:
        An error at a `RunStarted` is raised, since nothing is spent by then. A later one is logged
        as a warning, once for each listener, and the listener still receives all later events.

    Attributes:
        name: Name of the observer in a warning.
        listener: The observer's own listener.
    """

    name: str
    listener: Callable[[Event], None]
    _has_warned: bool = field(default=False, init=False)

    @classmethod
    def of(cls, observer: Observer) -> GuardedListener:
        """Return a listener of `observer` for one run."""
        return cls(type(observer).__name__, observer.start_run())

    def __call__(self, event: Event) -> None:
        """Pass `event` to the listener."""
        try:
            self.listener(event)
        except Exception as error:
            if isinstance(event, RunStarted):
                raise
            if self._has_warned:
                return
            self._has_warned = True
            reason = str(error) if isinstance(error, CohortiumError) else _described(error)
            _LOG.warning(
                "the observer %s failed at %s: %s; the run continues, and the observer's own "
                "report may lack events.",
                self.name,
                type(event).__name__,
                elide_middle(escape_control_characters(reason.rstrip("."))),
            )


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
