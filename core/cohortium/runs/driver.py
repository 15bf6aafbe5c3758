"""A run from its beginning, or from where it was broken off, to its result."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import tomli_w
from attrs import frozen

from cohortium import parameters
from cohortium.catalog.provenance import provenance_of
from cohortium.errors import RunError, StoppedError
from cohortium.learning.evaluation import Evaluation
from cohortium.roles.events import RoundCompleted, RunCompleted, RunFailed, RunStarted
from cohortium.rounds.coordinator import Coordinator
from cohortium.rounds.round_runner import Rounds
from cohortium.runs.history import History
from cohortium.runs.invite import muster
from cohortium.runs.result import OwnScores, Result, Timings, versions
from cohortium.runs.run_directory import STATES, STUDY, RunFolder, ledger_in
from cohortium.runs.run_state import Standing, origin_of
from cohortium.runs.site_scores import own_scores, personalises, score_sites
from cohortium.storage.atomic import atomic_write
from cohortium.study import toml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from cohortium.data.examples import Examples
    from cohortium.data.metrics import Predictions, Scores
    from cohortium.roles.events import Event
    from cohortium.roles.protocols import Engine, Observer
    from cohortium.roles.sessions import EngineSession
    from cohortium.rounds.round_runner import Played
    from cohortium.runs.prepare import Ready


def begin(
    ready: Ready,
    *,
    out: Path | None,
    observers: Sequence[Observer],
    stop: Callable[[], bool],
    engine: Engine | None = None,
) -> Result:
    """Run a study that is ready; see `Federation.run`."""
    coordinator = Coordinator(ready.setting)
    listeners = [observer.start_run() for observer in observers]
    # The folder last: whoever has a say may refuse until then, and nothing is there to clear away.
    with _at_work(ready, out, engine) as (exchange, told):
        if out is None:
            standing = Standing(ready=ready, coordinator=coordinator)
            return Run(standing, exchange, listeners, stop).carry_out(told)
        with RunFolder.create(out, ready.federation.as_toml()) as folder:
            standing = Standing(
                ready=ready, coordinator=coordinator, folder=folder, origin=origin_of(ready)
            )
            return Run(standing, exchange, listeners, stop).carry_out(told)


def resume(
    ready: Ready, folder: RunFolder, *, observers: Sequence[Observer], stop: Callable[[], bool]
) -> Result:
    """Go on with the run in `folder`; see `Federation.resume`."""
    checkpoint = folder.read_checkpoint()
    if checkpoint is not None:
        setting = attrs.evolve(ready.setting, session=checkpoint.session)
        ready = attrs.evolve(ready, setting=setting)
    standing = Standing(
        ready=ready,
        coordinator=Coordinator(ready.setting),
        folder=folder,
        origin=origin_of(ready),
    )
    if checkpoint is not None:
        standing.restore(checkpoint)
    _remember_observers(ready, folder)
    listeners = [observer.start_run() for observer in observers]
    with _at_work(ready, folder.path) as (exchange, told):
        return Run(standing, exchange, listeners, stop).carry_out(told)


def _remember_observers(ready: Ready, folder: RunFolder) -> None:
    """Keep the names of observers with the run, so that it tells them whenever it goes on.

    Raises:
        RunError: They cannot be written.
    """
    path = folder.path / STUDY
    study = toml.read(path, what="the study")
    known = study["federation"].get("observers", [])
    told = [*dict.fromkeys([*known, *ready.federation.observers])]
    if told != known:
        study["federation"]["observers"] = told
        try:
            atomic_write(path, tomli_w.dumps(study).encode())
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror}.") from error


@contextlib.contextmanager
def _at_work(
    ready: Ready, out: Path | None, engine: Engine | None = None
) -> Iterator[tuple[EngineSession, tuple[str, ...]]]:
    """The engine with its sites, and what hospitals have warned of; nothing is written for it.

    Args:
        ready: The study.
        out: Where simulated sites will find their ledger, and what their trainer keeps.
        engine: One that is at work already, in place of the study's.
    """
    ledger = ledger_in(out) if out is not None and ready.is_charged else None
    states = None if out is None else out / STATES
    exchange = (engine or ready.federation.engine).connect(ready.recipes(ledger, states))
    try:
        yield exchange, muster(exchange, ready) if ready.is_deployed else ()
    finally:
        exchange.close()


@frozen(eq=False)
class Run:
    """One run under way, in this process.

    Attributes:
        standing: How far it is.
        exchange: Reaches the sites.
        listeners: Observers, of this run.
        stop: Whether somebody has asked for its end; looked at before each attempt.
    """

    standing: Standing
    exchange: EngineSession
    listeners: Sequence[Callable[[Event], None]]
    stop: Callable[[], bool]

    @property
    def ready(self) -> Ready:
        """The study."""
        return self.standing.ready

    @property
    def folder(self) -> RunFolder | None:
        """Where it is kept, or None."""
        return self.standing.folder

    def carry_out(self, told: tuple[str, ...]) -> Result:
        """Drive every round that is left, and score what comes out.

        Args:
            told: What hospitals have warned of.
        """
        if self.folder is not None and self.ready.is_charged:
            self.folder.require_ledger()
        try:
            return self._to_end(told)
        except BaseException as error:
            # What an observer makes of it must not hide what it was.
            with contextlib.suppress(Exception):
                self.tell(RunFailed(reason=str(error) or type(error).__name__))
            raise

    def _to_end(self, told: tuple[str, ...]) -> Result:
        standing = self.standing
        if self.folder is not None:
            self.folder.write_facts(self.ready.facts)
        standing.keep()
        self.tell(self._start(told))
        watch = self._evaluation(self.ready.validation)
        rounds = Rounds(
            setting=self.ready.setting,
            coordinator=standing.coordinator,
            exchange=self.exchange,
            deadline=self.ready.federation.reply_timeout or None,
            goal=standing.goal,
            attempt=standing.attempt,
            begin=self._begin,
            tell=self.tell,
        )
        for number in range(len(standing.history), standing.goal):
            began = time.perf_counter()
            self._finish(number, rounds.play(number), watch, began)
        test = self._evaluation(self.ready.test)
        return self._end(None if test is None else test.predict(standing.coordinator.net))

    def _evaluation(self, examples: Examples | None) -> Evaluation | None:
        setting = self.ready.setting
        return Evaluation.of(examples, setting.spec.classes, setting.model, setting.device)

    def _begin(self, number: int, attempt: int) -> None:
        """Before an attempt: note it, unless the run is to stop."""
        if self.stop():
            folder = self.folder
            how = "nothing is kept" if folder is None else f"go on with {folder.how_to_resume}"
            raise StoppedError(f"stopped after {number} of {self.standing.goal} rounds; {how}.")
        self.standing.begin(attempt)

    def _finish(self, number: int, played: Played, watch: Evaluation | None, began: float) -> None:
        """After a round: keep what it came to, and tell."""
        standing, outcome = self.standing, played.outcome
        every = self.ready.federation.evaluate_every
        due = every and ((number + 1) % every == 0 or number + 1 == standing.goal)
        scores = watch.score(standing.coordinator.net) if watch is not None and due else None
        event = RoundCompleted(
            round=number,
            attempt=standing.attempt - 1,
            contributors=outcome.contributors,
            dropped=outcome.dropped,
            guarantee_so_far=self.ready.setting.plan.guarantee_after(standing.attempt),
            scores=scores,
            upload_bytes_per_site=outcome.upload_bytes,
            seconds_train=played.seconds,
            seconds_aggregate=time.perf_counter() - began - played.seconds,
            stages=played.stages,
        )
        standing.finish(event)
        self.tell(event)

    def _start(self, told: tuple[str, ...]) -> RunStarted:
        ready, setting = self.ready, self.ready.setting
        return RunStarted(
            folder=None if self.folder is None else self.folder.path,
            rounds=self.standing.goal,
            sites=setting.cohort.sites,
            parameters=ready.parameters,
            guarantee=setting.plan.guarantee,
            warnings=(*told, *self.standing.warnings()),
            dataset=ready.facts.name,
            citation=ready.facts.source,
            history=tuple(self.standing.history),
            classes=setting.spec.classes,
            aggregation=setting.aggregator.confidentiality(setting.cohort),
            provenance=provenance_of(ready.federation),
            **({} if ready.is_deployed else _known_of(ready)),
        )

    def _end(self, predictions: Predictions | None) -> Result:
        """After the last round: keep the result, and tell."""
        if not self.standing.history:
            raise RunError(
                "no round was finished, and all attempts that the study plans for are spent; begin "
                "another run, with more retries."
            )
        scores = None if predictions is None else predictions.scores
        result = self._result(scores, self._own())
        if self.folder is not None:
            if predictions is not None and not self.ready.is_deployed:
                self.folder.write_predictions(predictions)
            self.folder.write_result(result)
        self.tell(
            RunCompleted(
                scores=scores,
                guarantee=result.guarantee,
                weights_sha256=result.weights_sha256,
                seconds=result.seconds.total,
            )
        )
        if self.folder is not None:
            self.folder.log.complete()
        return result

    def _own(self) -> OwnScores | None:
        """What simulated sites found on what they held out; it is kept, too."""
        if self.folder is None or not self.ready.federation.holdout_fraction:
            return None
        found = score_sites(self.ready, self.standing.coordinator.net, self.folder.states)
        self.folder.write_site_scores(found)
        return own_scores(found)

    def _result(self, scores: Scores | None, own: OwnScores | None) -> Result:
        setting, history = self.ready.setting, History(self.standing.history)
        net = self.standing.coordinator.net
        return Result(
            scores=scores,
            guarantee=setting.plan.guarantee,
            aggregation=setting.aggregator.confidentiality(setting.cohort),
            rounds=len(history),
            sites=setting.cohort.sites,
            dropouts=sum(len(event.dropped) for event in history),
            max_upload_bytes=max(e.upload_bytes_per_site for e in history),
            seconds=Timings(
                train=sum(event.seconds_train for event in history),
                aggregate=sum(event.seconds_aggregate for event in history),
                total=self.standing.seconds,
            ),
            weights_sha256=parameters.sha256(net),
            versions=versions(),
            plugins=self.ready.federation.plugins(),
            history=history,
            weights=parameters.state_dict(net),
            folder=None if self.folder is None else self.folder.path,
            data=self.ready.facts.name,
            is_personal=personalises(setting.trainer, net),
            own=own,
            provenance=provenance_of(self.ready.federation),
        )

    def tell(self, event: Event) -> None:
        """Tell every observer."""
        for listener in self.listeners:
            listener(event)


def _known_of(ready: Ready) -> dict[str, Any]:
    """What only a simulator knows of the sites."""
    labels, classes = ready.splits.train.labels, len(ready.setting.spec.classes)
    return {
        "site_sizes": tuple(len(indices) for indices in ready.partition),
        "label_histograms": tuple(
            tuple(np.bincount(labels[indices], minlength=classes).tolist())
            for indices in ready.partition
        ),
        "data_sha256": ready.splits.train.fingerprint.hex(),
    }
