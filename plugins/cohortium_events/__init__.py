"""A run's events as lines of JSON.

Programs that follow or compare runs can read them.
Signs of progress (`SiteReplied`, `SiteScored`) are left out: they are many, and are no record.
A resumed run continues its file, which then has a `RunStarted` for every start.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from attrs import define, field, frozen

from cohortium.plugin import (
    EVENT_NAMES,
    Observer,
    Offer,
    RoundCompleted,
    RunError,
    RunStarted,
    SiteReplied,
    SiteScored,
    hookimpl,
)

if TYPE_CHECKING:
    from cohortium.plugin import Event

COHORTIUM_API = 1


@frozen
class Events:
    """Appends to `events.jsonl` in the run's folder, if there is one.

    Guarantees:
        A process that is killed loses at most the line that it was writing.  When the run is
        resumed, that line is removed.  Then the rounds that the run itself knows and the file lacks
        are written.
    """

    def start_run(self) -> EventWriter:
        """Return a writer for one run."""
        return EventWriter()


@define
class EventWriter:
    """Writer of each event at once, so a failed run loses nothing."""

    path: Path | None = None
    end: int = 0
    unwritten: list[str] = field(factory=list)

    def __call__(self, event: Event) -> None:
        """Append `event` with its kind and the time, seconds since the epoch.

        Lines that cannot be written are written with the next event.

        Raises:
            RunError: The file cannot be written.
        """
        if isinstance(event, SiteReplied | SiteScored):
            return
        try:
            if isinstance(event, RunStarted) and event.folder is not None:
                self.path = event.folder / "events.jsonl"
                known, self.end = _mended(self.path)
                self.unwritten += [_line(e) for e in event.history if e.round not in known]
            if self.path is not None:
                self.unwritten.append(_line(event))
                self._write(self.path)
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error.strerror}.") from error

    def _write(self, path: Path) -> None:
        with open(path, "a", encoding="utf-8", opener=_for_its_owner) as file:
            if os.fstat(file.fileno()).st_size > self.end:  # a part of a write that failed
                file.truncate(self.end)
            file.write("".join(self.unwritten))
        self.end = path.stat().st_size
        self.unwritten.clear()


def _for_its_owner(path: str, flags: int) -> int:
    """Open a file that only its owner may read.

    The other files in a run's folder are like that, too.
    """
    return os.open(path, flags, mode=0o600)


def _mended(path: Path) -> tuple[set[int], int]:
    """Return the completed rounds in the file, and its length without a torn last line.

    The torn line is removed from the file.
    """
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
    return found, end


def _line(event: Event) -> str:
    """Return one line.

    It leaves out the history of a resumed run, which the lines before it hold.
    """
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
    return [Offer("events", Events, "Events, as lines of JSON in events.jsonl.")]
