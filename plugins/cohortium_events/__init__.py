"""Writes a run's events as lines of JSON, for programs that follow or compare runs.

Signs of life within a round (`SiteReplied`) are passed over: they are thousands, and no record.
A run that goes on goes on in its file: a `RunStarted` stands there for every time.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from attrs import define, frozen

from cohortium.plugin import (
    EVENT_NAMES,
    Observer,
    Offer,
    RoundCompleted,
    RunError,
    RunStarted,
    SiteReplied,
    hookimpl,
)

if TYPE_CHECKING:
    from cohortium.plugin import Event

COHORTIUM_API = 1


@frozen
class Events:
    """Appends to `events.jsonl` in the run's folder; does nothing in a run without one.

    Guarantees:
        A process that is killed costs at most the line that it was writing.  When the run goes on,
        that line is taken off, and what the run itself knows of rounds that are not in the file is
        written after it.
    """

    def start_run(self) -> EventWriter:
        """A writer for one run."""
        return EventWriter()


@define
class EventWriter:
    """Writes each event as it comes, so that nothing is lost when the run is."""

    path: Path | None = None

    def __call__(self, event: Event) -> None:
        """Append `event` with its kind and the time, seconds since the epoch.

        Raises:
            RunError: The file cannot be written.
        """
        if isinstance(event, SiteReplied):
            return
        lines = [_line(event)]
        try:
            if isinstance(event, RunStarted) and event.folder is not None:
                self.path = event.folder / "events.jsonl"
                known = _mended(self.path)
                lines = [_line(e) for e in event.history if e.round not in known] + lines
            if self.path is not None:
                with open(self.path, "a", encoding="utf-8", opener=_for_its_owner) as file:
                    file.write("".join(lines))
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error.strerror}.") from error


def _for_its_owner(path: str, flags: int) -> int:
    """Open a file that only its owner may read, like the others in a run's folder."""
    return os.open(path, flags, mode=0o600)


def _mended(path: Path) -> set[int]:
    """The rounds whose end stands in the file at `path`, from which a torn last line is taken."""
    whole = path.read_bytes() if path.exists() else b""
    end = whole.rfind(b"\n") + 1
    if end < len(whole):
        os.truncate(path, end)
    found: set[int] = set()
    for line in whole[:end].splitlines():
        with contextlib.suppress(ValueError, KeyError):
            event = json.loads(line)
            if isinstance(event, dict) and event.get("event") == EVENT_NAMES[RoundCompleted]:
                found.add(event["round"])
    return found


def _line(event: Event) -> str:
    """One line; the history of a run that goes on stands in the lines before it."""
    fields = attrs.asdict(event, filter=lambda field, _: field.name != "history")
    line = {"event": EVENT_NAMES[type(event)], "time": time.time(), **fields}
    return json.dumps(line, ensure_ascii=False, default=_plain) + "\n"


def _plain(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"an event holds a {type(value).__name__}, which JSON cannot.")


@hookimpl
def cohortium_observers() -> list[Offer[Observer]]:
    """Offer `events`."""
    return [Offer("events", Events, "What happens, as lines of JSON in events.jsonl.")]
