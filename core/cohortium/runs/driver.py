"""A run from its start or its last checkpoint to its result."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import tomli_w
from attrs import frozen

from cohortium import parameters
from cohortium.catalog.provenance import collect_provenance
from cohortium.crypto.randomness import Seeds
from cohortium.data.group_scores import groupings, score_groups
from cohortium.errors import RunError, StoppedError
from cohortium.learning.evaluation import Evaluation
from cohortium.roles.events import RoundCompleted, RunCompleted, RunFailed, RunStarted
from cohortium.rounds.coordinator import Coordinator
from cohortium.rounds.round_runner import RoundRunner
from cohortium.runs.history import History
from cohortium.runs.invite import invite_sites
from cohortium.runs.mask_examples import choose_mask_examples
from cohortium.runs.result import Measured, OwnScores, Result, Timings, versions
from cohortium.runs.run_directory import STATES, STUDY, RunDirectory, run_ledger
from cohortium.runs.run_state import RunState, run_fingerprint
from cohortium.runs.site_scores import own_scores, personalises, score_sites
from cohortium.statistics.noise import noise_of_sum
from cohortium.storage.atomic import atomic_write
from cohortium.study import toml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from cohortium.data.examples import Examples
    from cohortium.data.predictions import Predictions
    from cohortium.data.scores import Scores
    from cohortium.roles.events import Event
    from cohortium.roles.protocols import Engine, Observer
    from cohortium.roles.sessions import EngineSession
    from cohortium.rounds.round_runner import RoundResult
    from cohortium.runs.prepare import PreparedStudy


def start(
    prepared: PreparedStudy,
    *,
    out: Path | None,
    observers: Sequence[Observer],
    stop: Callable[[], bool],
    engine: Engine | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Result:
    """Run a prepared study (see `Federation.run`).

    Args:
        prepared: The study.
        out: Folder of the run's record, or None.
        observers: Observers of every event.
        stop: Whether the user has asked to stop.
        engine: A running engine to use in place of the study's.
        weights: Weights to begin with, or None for the initial ones.
    """
    coordinator = Coordinator(prepared.run_config)
    if weights is not None:
        coordinator.load_weights(weights)
    listeners = [observer.start_run() for observer in observers]
    # The folder last: until then, each party may refuse, and nothing has to be removed.
    with _engine_session(prepared, out, engine) as (exchange, site_warnings):
        if out is None:
            run_state = RunState(prepared=prepared, coordinator=coordinator)
            return RunDriver(run_state, exchange, listeners, stop).execute(site_warnings)
        with RunDirectory.create(out, prepared.federation.as_toml()) as folder:
            run_state = RunState(
                prepared=prepared,
                coordinator=coordinator,
                folder=folder,
                fingerprint=run_fingerprint(prepared),
            )
            return RunDriver(run_state, exchange, listeners, stop).execute(site_warnings)


def resume(
    prepared: PreparedStudy,
    folder: RunDirectory,
    *,
    observers: Sequence[Observer],
    stop: Callable[[], bool],
    weights: Mapping[str, Tensor] | None = None,
) -> Result:
    """Continue the run in `folder` (see `Federation.resume`).

    Args:
        prepared: The study.
        folder: Folder of the run.
        observers: Observers of every event.
        stop: Whether the user has asked to stop.
        weights: Weights with which the run began, or None for the initial ones.
    """
    checkpoint = folder.read_checkpoint()
    if checkpoint is not None:
        run_config = attrs.evolve(prepared.run_config, session=checkpoint.session)
        prepared = attrs.evolve(prepared, run_config=run_config)
    run_state = RunState(
        prepared=prepared,
        coordinator=Coordinator(prepared.run_config),
        folder=folder,
        fingerprint=run_fingerprint(prepared),
    )
    if checkpoint is not None:
        run_state.restore(checkpoint)
    elif weights is not None:
        run_state.coordinator.load_weights(weights)
    _remember_observers(prepared, folder)
    listeners = [observer.start_run() for observer in observers]
    with _engine_session(prepared, folder.path) as (exchange, site_warnings):
        return RunDriver(run_state, exchange, listeners, stop).execute(site_warnings)


def _remember_observers(prepared: PreparedStudy, folder: RunDirectory) -> None:
    """Store the names of observers with the run, for each resumption.

    Raises:
        RunError: The names cannot be written.
    """
    path = folder.path / STUDY
    study = toml.read(path, what="the study")
    known = study["federation"].get("observers", [])
    names = [*dict.fromkeys([*known, *prepared.federation.observers])]
    if names != known:
        study["federation"]["observers"] = names
        try:
            atomic_write(path, tomli_w.dumps(study).encode())
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror}.") from error


@contextlib.contextmanager
def _engine_session(
    prepared: PreparedStudy, out: Path | None, engine: Engine | None = None
) -> Iterator[tuple[EngineSession, tuple[str, ...]]]:
    """Open the engine and, in a deployment, invite the sites.

    Yields the engine session and the sites' warnings. Writes nothing to disk.

    Args:
        prepared: The study.
        out: Folder of the simulated sites' ledger and trainer state.
        engine: A running engine to use in place of the study's.
    """
    ledger = run_ledger(out) if out is not None and prepared.uses_run_ledger else None
    states = None if out is None else out / STATES
    exchange = (engine or prepared.federation.engine).connect(
        prepared.site_factories(ledger, states)
    )
    try:
        yield exchange, invite_sites(exchange, prepared) if prepared.is_deployment else ()
    finally:
        exchange.close()


@frozen(eq=False)
class RunDriver:
    """One run in progress, in this process.

    Attributes:
        run_state: State of the run.
        exchange: Session of the engine, which reaches the sites.
        listeners: Observers of this run.
        stop: Whether the user has asked to stop. It is called before each attempt.
    """

    run_state: RunState
    exchange: EngineSession
    listeners: Sequence[Callable[[Event], None]]
    stop: Callable[[], bool]

    @property
    def prepared(self) -> PreparedStudy:
        """The study."""
        return self.run_state.prepared

    @property
    def folder(self) -> RunDirectory | None:
        """Directory of the run, or None."""
        return self.run_state.folder

    def execute(self, site_warnings: tuple[str, ...]) -> Result:
        """Run every round that is left, and score the final weights.

        Args:
            site_warnings: Warnings of the hospitals.
        """
        if self.folder is not None and self.prepared.uses_run_ledger:
            self.folder.require_ledger()
        try:
            return self._to_end(site_warnings)
        except BaseException as error:
            # An error in an observer must not hide the original error.
            with contextlib.suppress(Exception):
                self.notify(RunFailed(reason=str(error) or type(error).__name__))
            raise

    def _to_end(self, site_warnings: tuple[str, ...]) -> Result:
        run_state = self.run_state
        if self.folder is not None:
            self.folder.write_dataset_info(self.prepared.dataset_info)
        run_state.checkpoint()
        self.notify(self._start(site_warnings))
        watch = self._evaluation(self.prepared.validation)
        rounds = RoundRunner(
            run_config=self.prepared.run_config,
            coordinator=run_state.coordinator,
            exchange=self.exchange,
            deadline=self.prepared.federation.reply_timeout or None,
            target_rounds=run_state.target_rounds,
            attempt=run_state.attempt,
            start_attempt=self._begin,
            notify=self.notify,
        )
        for number in range(len(run_state.history), run_state.target_rounds):
            began = time.perf_counter()
            self._finish(number, rounds.run_round(number), watch, began)
        test = self._evaluation(self.prepared.test)
        return self._end(None if test is None else test.predict(run_state.coordinator.net))

    def _evaluation(self, examples: Examples | None) -> Evaluation | None:
        prepared, run_config = self.prepared, self.prepared.run_config
        return Evaluation.of(
            examples, run_config.spec, run_config.model, run_config.device, prepared.features
        )

    def _begin(self, number: int, attempt: int) -> None:
        """Log an attempt before it begins, unless the run is to stop."""
        if self.stop():
            folder = self.folder
            how = "nothing is kept" if folder is None else f"continue with {folder.resume_command}"
            raise StoppedError(
                f"stopped after {number} of {self.run_state.target_rounds} rounds; {how}."
            )
        self.run_state.start_attempt(attempt)

    def _finish(
        self, number: int, played: RoundResult, watch: Evaluation | None, began: float
    ) -> None:
        """Store the result of a round, and notify the observers."""
        run_state, outcome = self.run_state, played.outcome
        every = self.prepared.federation.evaluate_every
        due = every and ((number + 1) % every == 0 or number + 1 == run_state.target_rounds)
        scores = watch.score(run_state.coordinator.net) if watch is not None and due else None
        event = RoundCompleted(
            round=number,
            attempt=run_state.attempt - 1,
            contributors=outcome.contributors,
            dropped=outcome.dropped,
            guarantee_so_far=self.prepared.run_config.plan.guarantee_after(
                History(run_state.history).attempt_rounds(run_state.attempt)
            ),
            scores=scores,
            upload_bytes_per_site=outcome.upload_bytes,
            seconds_train=played.exchange_seconds,
            seconds_aggregate=time.perf_counter() - began - played.exchange_seconds,
            stages=played.stages,
            measured=outcome.measured,
            plan_state=run_state.coordinator.plan_state,
        )
        run_state.complete_round(event)
        self.notify(event)

    def _start(self, site_warnings: tuple[str, ...]) -> RunStarted:
        prepared, run_config = self.prepared, self.prepared.run_config
        return RunStarted(
            folder=None if self.folder is None else self.folder.path,
            rounds=self.run_state.target_rounds,
            sites=run_config.federation_spec.sites,
            parameters=prepared.parameters,
            guarantee=run_config.plan.guarantee,
            warnings=(*site_warnings, *self.run_state.warnings()),
            dataset=prepared.dataset_info.name,
            citation=prepared.dataset_info.source,
            history=tuple(self.run_state.history),
            classes=run_config.spec.classes,
            aggregation=run_config.aggregator.confidentiality(run_config.federation_spec),
            provenance=collect_provenance(prepared.federation),
            **({} if prepared.is_deployment else _simulation_info(prepared)),
        )

    def _end(self, predictions: Predictions | None) -> Result:
        """Store the result after the last round, and notify the observers."""
        if not self.run_state.history:
            raise RunError(
                "no round was finished, and all attempts that the study plans for are spent; begin "
                "another run, with more retries."
            )
        predictions = None if predictions is None else self._grouped(predictions)
        scores = None if predictions is None else self._scored(predictions)
        result = self._result(scores, self._own())
        if self.folder is not None:
            if predictions is not None and not self.prepared.is_deployment:
                self.folder.write_predictions(predictions)
                self._write_mask_examples(self.folder, predictions)
            self.folder.write_result(result)
        self.notify(
            RunCompleted(
                scores=scores,
                guarantee=result.guarantee,
                weights_sha256=result.weights_sha256,
                seconds=result.seconds.total,
            )
        )
        if self.folder is not None:
            self.folder.log.log_result()
        return result

    def _write_mask_examples(self, folder: RunDirectory, predictions: Predictions) -> None:
        splits = self.prepared.loaded_splits
        assert splits is not None
        assert splits.test is not None
        found = choose_mask_examples(splits.test, predictions, self.prepared.run_config.spec)
        if found is not None:
            folder.write_mask_examples(found)

    def _grouped(self, predictions: Predictions) -> Predictions:
        """Return the predictions for the test images with the images' centres and groups."""
        splits = self.prepared.loaded_splits
        assert splits is not None
        assert splits.test is not None
        found = groupings(splits.test, splits.groups, splits.centres)
        return attrs.evolve(predictions, groupings=found)

    def _scored(self, predictions: Predictions) -> Scores:
        """Return the scores of the test images, by centre and group as well."""
        rng = Seeds(self.prepared.federation.seed).generator("group intervals")
        return attrs.evolve(predictions.scores, groups=score_groups(predictions, rng))

    def _own(self) -> OwnScores | None:
        """Score simulated sites on their held-out images, and store the scores."""
        if self.folder is None or not self.prepared.federation.holdout_fraction:
            return None
        found = score_sites(self.prepared, self.run_state.coordinator.net, self.folder.state_dir)
        self.folder.write_site_scores(found)
        return own_scores(found)

    def _result(self, scores: Scores | None, own: OwnScores | None) -> Result:
        run_config, history = self.prepared.run_config, History(self.run_state.history)
        net = self.run_state.coordinator.net
        return Result(
            scores=scores,
            guarantee=run_config.plan.guarantee,
            aggregation=run_config.aggregator.confidentiality(run_config.federation_spec),
            rounds=len(history),
            sites=run_config.federation_spec.sites,
            dropouts=sum(len(event.dropped) for event in history),
            max_upload_bytes=max(e.upload_bytes_per_site for e in history),
            seconds=Timings(
                train=sum(event.seconds_train for event in history),
                aggregate=sum(event.seconds_aggregate for event in history),
                total=self.run_state.seconds,
            ),
            weights_sha256=parameters.sha256(net),
            versions=versions(),
            plugins=self.prepared.federation.plugins(),
            history=history,
            weights=parameters.state_dict(net),
            folder=None if self.folder is None else self.folder.path,
            data=self.prepared.dataset_info.name,
            is_personal=personalises(run_config.trainer, net),
            own=own,
            measured=self._measured(),
            provenance=collect_provenance(self.prepared.federation),
        )

    def _measured(self) -> Measured | None:
        """Return the estimates of the last round, or None where the sites train."""
        run_config, last = self.prepared.run_config, self.run_state.history[-1]
        if run_config.statistic is None:
            return None
        noise = noise_of_sum(run_config.plan.guarantee, len(last.contributors))
        sums = np.array(last.measured)
        return Measured(
            contributors=len(last.contributors),
            examples=run_config.spec.examples,
            noise=noise,
            cells=run_config.statistic.cells,
            sums=last.measured,
            estimates=run_config.statistic.estimate(sums, noise),
        )

    def notify(self, event: Event) -> None:
        """Notify every observer."""
        for listener in self.listeners:
            listener(event)


def _simulation_info(prepared: PreparedStudy) -> dict[str, Any]:
    """Return the facts about the sites that only a simulator knows."""
    labels, task = prepared.splits.train.labels, prepared.run_config.spec.task
    return {
        "site_sizes": tuple(len(indices) for indices in prepared.partition),
        "label_histograms": tuple(
            tuple(task.counts(labels[indices]).tolist()) for indices in prepared.partition
        ),
        "data_sha256": prepared.splits.train.fingerprint.hex(),
    }
