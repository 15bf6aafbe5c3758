"""The contract of an `Observer`: a listener for every run and event."""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from cohortium.data.estimates import Estimate
from cohortium.data.scores import ClassScores, Scores
from cohortium.privacy.guarantee import Guarantee
from cohortium.roles.events import (
    AttemptFailed,
    RoundCompleted,
    RunCompleted,
    RunFailed,
    RunStarted,
    SiteFailed,
    SiteReplied,
    SiteScored,
    SitesEvaluated,
)
from cohortium.testing.contract import Check, ConformanceError, ensure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cohortium.roles.events import Event
    from cohortium.roles.protocols import Observer

GUARANTEE = Guarantee(
    epsilon=2.0,
    delta=1e-5,
    epsilon_at_1e_5=2.0,
    unit="example",
    adjacency="zero-out",
    against="everyone",
    accountant="prv",
    noise_multiplier=1.0,
)
SCORES = Scores(
    images=4,
    metrics={"accuracy": 0.5, "balanced_accuracy": 0.5, "auc": None, "loss": 0.7},
    per_class=(ClassScores(name="a", examples=2, metrics={"sensitivity": 1.0, "auc": None}),),
    confusion=((1, 1), (0, 2)),
)
"""Sample scores for the events."""

MAIN = Estimate(metric="accuracy", value=0.5, low=0.3, high=0.7, noise_low=0.4, noise_high=0.6)
"""Sample estimate for the events."""


def check_takes_every_event(observer: Observer) -> None:
    """A listener takes every kind of event, complete or not.

    The events come with and without privacy, scores and a folder.
    """
    with _aside() as folder:
        for told, full in ((folder, True), (None, False)):
            listener = observer.start_run()
            ensure(
                callable(listener),
                f"watch gave a {type(listener).__name__}, which cannot be called; return a "
                "function of one event.",
            )
            for event in sample_events(told, full=full):
                try:
                    listener(event)
                except Exception as error:
                    raise ConformanceError(
                        f"the listener raised {type(error).__name__} ({error}) on "
                        f"{type(event).__name__}, which would end the run or leave a gap in the "
                        "report; ignore events that it does not use."
                    ) from error


def check_takes_a_failed_run(observer: Observer) -> None:
    """A run may fail before its first round or its start."""
    with _aside() as folder:
        for events in (
            [sample_events(folder)[0], RunFailed(reason="no.")],
            [RunFailed(reason="no.")],
        ):
            listener = observer.start_run()
            try:
                for event in events:
                    listener(event)
            except Exception as error:
                raise ConformanceError(
                    f"a run that failed early made the listener raise {type(error).__name__} "
                    f"({error}), which hides the run's own error; take RunFailed at any time."
                ) from error


def check_takes_a_run_that_goes_on(observer: Observer) -> None:
    """An interrupted run may resume with another listener in the same folder.

    No event reports the interruption.  The lines that the first listener has written of the first
    round are still there in the end.
    """
    with _aside() as folder:
        whole, parted = folder / "whole", folder / "parted"
        for path in (whole, parted):
            path.mkdir()
        listener = observer.start_run()
        for event in sample_events(whole):
            listener(event)
        started, *rest = sample_events(parted)
        assert isinstance(started, RunStarted)
        broken, again = observer.start_run(), observer.start_run()
        first, second = (event for event in rest if isinstance(event, RoundCompleted))
        cut = rest.index(second)
        try:
            for event in (started, *rest[:cut]):
                broken(event)
            for event in (attrs.evolve(started, history=(first,)), *rest[cut:]):
                again(event)
        except Exception as error:
            raise ConformanceError(
                "a run that was resumed after a round made the listener raise "
                f"{type(error).__name__} ({error}); its RunStarted has a history, and the folder "
                "has an earlier listener's files."
            ) from error
        found = _lines(parted)
        lost = [
            kind for kind, counts in _lines(whole).items() if sum(found.get(kind, [])) < sum(counts)
        ]
        ensure(
            not lost,
            f"a run that was resumed after its first round left fewer lines in {', '.join(lost)} "
            "than one that never broke off: what was written of the round before is lost. Append "
            "to what is there, or write the rounds of RunStarted.history again.",
        )


def check_listeners_are_independent(observer: Observer) -> None:
    """Two concurrent runs have separate listeners and folders."""
    with _aside() as folder:
        alone, first, second = (folder / name for name in ("alone", "first", "second"))
        for path in (alone, first, second):
            path.mkdir()
        one, other = observer.start_run(), observer.start_run()
        ensure(
            one is not other,
            "watch gave one listener twice, and two runs at a time would be taken for one; make a "
            "new one at every call.",
        )
        for pair in zip(sample_events(first), sample_events(second), strict=True):
            one(pair[0])
            other(pair[1])
        only = observer.start_run()
        for event in sample_events(alone):
            only(event)
        wanted = _lines(alone)
        ensure(
            _lines(first) == wanted and _lines(second) == wanted,
            "two runs at a time left other files in their folders than one alone; keep a run's "
            "state in its listener.",
        )


CHECKS: tuple[Check, ...] = (
    check_takes_every_event,
    check_takes_a_failed_run,
    check_takes_a_run_that_goes_on,
    check_listeners_are_independent,
)
"""Every check of an observer."""


def sample_events(folder: Path | None, *, full: bool = True) -> list[Event]:
    """Return the events of a run of two rounds.

    The first round needs two attempts.
    """
    promise, scores = (GUARANTEE, SCORES) if full else (None, None)
    started = RunStarted(
        folder=folder,
        rounds=2,
        sites=3,
        parameters=188,
        guarantee=promise,
        site_sizes=(2, 3, 4) if full else None,
        label_histograms=((1, 1), (1, 2), (0, 4)) if full else None,
    )
    rounds = [
        RoundCompleted(
            round=number,
            attempt=number + 1,
            contributors=(0, 2),
            dropped=(1,),
            guarantee_so_far=promise,
            scores=scores,
            upload_bytes_per_site=700,
            seconds_train=0.1,
            seconds_aggregate=0.01,
        )
        for number in range(2)
    ]
    return [
        started,
        SiteReplied(round=0, attempt=0, stage=0, site=0, num_replied=1, num_asked=3),
        SiteFailed(round=0, attempt=0, site=1, code="non-finite", reason="it holds NaN [sic]."),
        AttemptFailed(round=0, attempt=0, reason="too few."),
        rounds[0],
        SitesEvaluated(rounds=1, contributors=2, main=MAIN, guarantee_so_far=promise),
        rounds[1],
        SiteScored(site=0, num_scored=1, num_sites=3),
        RunCompleted(scores=scores, guarantee=promise, weights_sha256="0" * 64, seconds=0.2),
    ]


@contextlib.contextmanager
def _aside() -> Iterator[Path]:
    """Yield a temporary folder, and keep all output from the terminal."""
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        yield Path(folder)


def _lines(folder: Path) -> dict[str, list[int]]:
    """Return the kinds of files in `folder`, with their numbers of lines.

    A tracker names its files by the time or by chance, and fills them with times.  So only the
    letters of a name count, and of a file that is not text only its existence.
    """
    found: dict[str, list[int]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            kind = re.sub(r"[0-9a-f]{8,}|[^a-zA-Z/.]+", "", str(path.relative_to(folder)))
            found.setdefault(kind, []).append(_count(path.read_bytes()))
    return {kind: sorted(counts) for kind, counts in found.items()}


def _count(data: bytes) -> int:
    try:
        return data.decode().count("\n")
    except UnicodeDecodeError:
        return 0
