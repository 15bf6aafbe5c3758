from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from attrs import field, frozen

from cohortium.plugin import Event, RoundCompleted, RunCompleted, RunStarted
from cohortium.testing import ConformanceError, observers
from cohortium_events import Events, EventWriter


@frozen
class NoListener:
    def start_run(self) -> Any:
        return "told you"


@frozen
class Picky:
    """Knows rounds only."""

    def start_run(self) -> Any:
        def listen(event: Any) -> None:
            assert event.round >= 0

        return listen


@frozen
class WantsScores:
    def start_run(self) -> Any:
        def listen(event: Event) -> None:
            if isinstance(event, RoundCompleted):
                assert event.scores is not None

        return listen


class WantsAStart:
    def start_run(self) -> Any:
        started: list[int] = []

        def listen(event: Event) -> None:
            if isinstance(event, RunStarted):
                started.append(event.rounds)
            assert started[0]

        return listen


@frozen
class NewFolder:
    """Makes what must not be there yet."""

    def start_run(self) -> Any:
        def listen(event: Event) -> None:
            if isinstance(event, RunStarted) and event.folder is not None:
                (event.folder / "mine").mkdir()

        return listen


@frozen
class Anew:
    """Writes its table from the beginning whenever a run starts."""

    def start_run(self) -> Any:
        paths: list[Path] = []

        def listen(event: Event) -> None:
            if isinstance(event, RunStarted) and event.folder is not None:
                paths.append(event.folder / "rounds.csv")
                paths[0].write_text("round\n")
            elif isinstance(event, RoundCompleted) and paths:
                with paths[0].open("a") as file:
                    file.write(f"{event.round}\n")

        return listen


@frozen
class Forgetful:
    """Writes in the end what it has been told itself."""

    def start_run(self) -> Any:
        told: list[Event] = []

        def listen(event: Event) -> None:
            told.append(event)
            folder = told[0].folder if isinstance(told[0], RunStarted) else None
            if isinstance(event, RunCompleted) and folder is not None:
                rounds = [str(e.round) for e in told if isinstance(e, RoundCompleted)]
                (folder / "rounds.txt").write_text("\n".join([*rounds, ""]))

        return listen


@frozen
class OneForAll:
    writer: EventWriter = field(factory=EventWriter)

    def start_run(self) -> Any:
        return self.writer


@frozen
class SharedFolder:
    """Listeners of their own, and one place where they write."""

    writer: EventWriter = field(factory=EventWriter)

    def start_run(self) -> Any:
        return partial(self.writer)


BAD = [
    (observers.check_takes_every_event, NoListener(), "watch gave a str"),
    (observers.check_takes_every_event, Picky(), "AttributeError .* on RunStarted"),
    (observers.check_takes_every_event, WantsScores(), "(?s)AssertionError.* on RoundCompleted"),
    (observers.check_takes_a_failed_run, WantsAStart(), "hides the run's own error"),
    (observers.check_takes_a_run_that_goes_on, NewFolder(), "FileExistsError .* has a history"),
    (observers.check_takes_a_run_that_goes_on, Anew(), "fewer lines in rounds.csv .* is lost"),
    (observers.check_takes_a_run_that_goes_on, Forgetful(), "fewer lines in rounds.txt"),
    (observers.check_listeners_are_independent, OneForAll(), "gave one listener twice"),
    (observers.check_listeners_are_independent, SharedFolder(), "left other files"),
]


@pytest.mark.parametrize(("check", "bad", "words"), BAD)
def test_a_bad_observer_fails(check: Any, bad: Any, words: str) -> None:
    with pytest.raises(ConformanceError, match=words):
        check(bad)


@pytest.mark.parametrize("check", observers.CHECKS)
def test_valid_plugin_passes_check(check: Any) -> None:
    assert check(Events()) is None


def test_every_check_has_bad_implementation() -> None:
    assert {check for check, _, _ in BAD} == set(observers.CHECKS)
