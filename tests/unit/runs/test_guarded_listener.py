"""Observers that fail: at the start of a run, and within it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import field, frozen

from cohortium.errors import RunError
from cohortium.plugin import Event, RoundCompleted, RunCompleted, RunStarted
from cohortium.testing.observers import sample_events
from cohortium_events import Events
from tests.support.federations import RecordingObserver, tiny_federation


@frozen
class Failing:
    """Fails at each event of a kind, after it has kept it."""

    kind: type[Any]
    events: list[Event] = field(factory=list)

    def start_run(self) -> Callable[[Event], None]:
        def listen(event: Event) -> None:
            self.events.append(event)
            if isinstance(event, self.kind):
                raise ConnectionError("no \x1b[2Jserver")

        return listen


def test_observer_that_fails_within_a_run_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    observer, other = Failing(RoundCompleted), RecordingObserver()
    with caplog.at_level(logging.WARNING, logger="cohortium"):
        result = tiny_federation(rounds=3).run(tmp_path / "run", observers=[observer, other])
    assert result.rounds == 3
    assert (tmp_path / "run" / "result.json").exists()
    assert observer.events == other.events
    assert isinstance(observer.events[-1], RunCompleted)
    (told,) = [record.getMessage() for record in caplog.records]
    assert told == (
        "the observer Failing failed at RoundCompleted: ConnectionError: no \\x1b[2Jserver; the "
        "run continues, and the observer's own report may lack events."
    )


def test_observer_that_fails_at_the_start_ends_the_run_unspent(tmp_path: Path) -> None:
    study, seen = tiny_federation(), RecordingObserver()
    with pytest.raises(ConnectionError):
        study.run(tmp_path / "run", observers=[seen, Failing(RunStarted)])
    assert not seen.of(RoundCompleted)
    assert study.resume(tmp_path / "run").rounds == 2


def test_events_that_could_not_be_written_are_written_later(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    listener = Events().start_run()
    started, *rest = [
        event
        for event in sample_events(tmp_path)
        if isinstance(event, RunStarted | RoundCompleted | RunCompleted)
    ]
    listener(started)
    path.rename(tmp_path / "aside")
    path.mkdir()
    for event in rest[:-1]:
        with pytest.raises(RunError, match="cannot write"):
            listener(event)
    path.rmdir()
    (tmp_path / "aside").rename(path)
    with path.open("a") as file:
        file.write('{"event": "RoundComp')
    listener(rest[-1])
    kinds = [json.loads(line)["event"] for line in path.read_text().splitlines()]
    assert kinds == ["RunStarted", "RoundCompleted", "RoundCompleted", "RunCompleted"]
