"""Writes a run's events as lines of JSON, for programs that follow or compare runs.

Signs of life within a round (`SiteAnswered`) are passed over: they are thousands, and no record.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from attrs import define, frozen

from cohortium.plugin import Observer, Offer, RunStarted, SiteAnswered, hookimpl

if TYPE_CHECKING:
    from cohortium.plugin import Event

COHORTIUM_API = 1


@frozen
class Events:
    """Appends to `events.jsonl` in the run's folder; does nothing in a run without one."""

    def watch(self) -> EventWriter:
        """A writer for one run."""
        return EventWriter()


@define
class EventWriter:
    """Writes each event as it comes, so that nothing is lost when the run is."""

    path: Path | None = None

    def __call__(self, event: Event) -> None:
        """Append `event` with its kind and the time, seconds since the epoch."""
        if isinstance(event, RunStarted) and event.folder is not None:
            self.path = event.folder / "events.jsonl"
        if self.path is None or isinstance(event, SiteAnswered):
            return
        line = {"event": type(event).__name__, "time": time.time(), **attrs.asdict(event)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False, default=_plain) + "\n")


def _plain(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"an event holds a {type(value).__name__}, which JSON cannot.")


@hookimpl
def cohortium_observers() -> list[Offer[Observer]]:
    """Offer `events`."""
    return [Offer("events", Events, "What happens, as lines of JSON in events.jsonl.")]
