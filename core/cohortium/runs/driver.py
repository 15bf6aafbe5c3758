"""A run in steps: its beginning, its rounds and its end."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import attrs
from attrs import define, field

from cohortium import parameters
from cohortium.catalog.provenance import collect_provenance
from cohortium.crypto.randomness import Seeds
from cohortium.data.group_scores import groupings, score_groups
from cohortium.errors import AttemptsSpentError, StoppedError
from cohortium.learning.evaluation import Evaluation
from cohortium.roles.events import RoundCompleted, RunCompleted, RunFailed, RunStarted, SiteScored
from cohortium.rounds.plan_with_prior import attack_bounds
from cohortium.rounds.round_runner import RoundRunner
from cohortium.runs.history import History
from cohortium.runs.mask_examples import choose_mask_examples
from cohortium.runs.measured import measured_by_round, measured_sum
from cohortium.runs.result import Result, Timings, versions
from cohortium.runs.site_scores import own_scores, personalises, score_sites

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from cohortium.data.examples import Examples
    from cohortium.data.predictions import Predictions
    from cohortium.data.scores import Scores
    from cohortium.roles.events import Event, SitesEvaluated
    from cohortium.roles.sessions import EngineSession
    from cohortium.rounds.round_runner import RoundResult
    from cohortium.runs.holdout_scores import OwnScores
    from cohortium.runs.prepare import PreparedStudy
    from cohortium.runs.run_directory import RunDirectory
    from cohortium.runs.run_state import RunState


@define(eq=False)
class RunDriver:
    """One run in progress, in this process.

    Attributes:
        run_state: State of the run.
        exchange: Session of the engine, which reaches the sites.
        listeners: Observers of this run.
        stop: Whether the user has asked to stop. It is called before each attempt.
        resume_command: The command that continues the run, or None if nothing is kept.
        run_alone: Runs the study of one site alone in a new folder, for the study's baselines.
    """

    run_state: RunState
    exchange: EngineSession
    listeners: Sequence[Callable[[Event], None]]
    stop: Callable[[], bool]
    resume_command: str | None = None
    run_alone: Callable[[PreparedStudy, Path], Result] | None = None
    _rounds: RoundRunner | None = field(default=None, init=False)
    _watch: Evaluation | None = field(default=None, init=False)

    @property
    def prepared(self) -> PreparedStudy:
        """The study."""
        return self.run_state.prepared

    @property
    def folder(self) -> RunDirectory | None:
        """Directory of the run, or None."""
        return self.run_state.folder

    def execute(
        self,
        site_warnings: tuple[str, ...],
        between: Callable[[RunState], SitesEvaluated | None] | None = None,
    ) -> Result:
        """Run every round that is left, and score the final weights.

        Args:
            site_warnings: Warnings of the hospitals.
            between: Called before each round that follows another, also where the run resumes.
        """
        with self.reported():
            self.begin(site_warnings)
            while (done := len(self.run_state.history)) < self.run_state.target_rounds:
                if between is not None and done and (event := between(self.run_state)) is not None:
                    self.notify(event)
                self.run_round()
            return self.end()

    @contextlib.contextmanager
    def reported(self) -> Iterator[None]:
        """Notify the observers if the body fails."""
        try:
            yield
        except BaseException as error:
            # An error in an observer must not hide the original error.
            with contextlib.suppress(Exception):
                self.notify(RunFailed(reason=str(error) or type(error).__name__))
            raise

    def begin(self, site_warnings: tuple[str, ...]) -> None:
        """Store the state before the next round, and notify the observers.

        Args:
            site_warnings: Warnings of the hospitals.
        """
        run_state = self.run_state
        if self.folder is not None:
            if self.prepared.uses_run_ledger:
                self.folder.require_ledger()
            self.folder.write_dataset_info(self.prepared.dataset_info)
        run_state.checkpoint()
        self.notify(self._start(site_warnings))
        self._watch = self._evaluation(self.prepared.validation)
        self._rounds = RoundRunner(
            run_config=self.prepared.run_config,
            coordinator=run_state.coordinator,
            exchange=self.exchange,
            deadline=self.prepared.federation.reply_timeout or None,
            target_rounds=run_state.target_rounds,
            attempt_rounds=run_state.attempt_rounds(),
            start_attempt=self._begin,
            notify=self.notify,
        )

    def run_round(self, trained_rounds: int | None = None) -> RoundCompleted:
        """Run the next round.

        Args:
            trained_rounds: In an evaluation, rounds of training that the weights have had.
        """
        assert self._rounds is not None, "a run begins before its first round"
        began, number = time.perf_counter(), len(self.run_state.history)
        return self._finish(number, self._rounds.run_round(number), began, trained_rounds)

    def end(self) -> Result:
        """Score the final weights, and store the result."""
        test = self._evaluation(self.prepared.test)
        net = self.run_state.coordinator.net
        return self._end(None if test is None else test.predict(net))

    def _evaluation(self, examples: Examples | None) -> Evaluation | None:
        prepared, run_config = self.prepared, self.prepared.run_config
        return Evaluation.of(
            examples, run_config.spec, run_config.model, run_config.device, prepared.features
        )

    def _begin(self, number: int, attempt: int) -> None:
        """Log an attempt before it begins, unless the run is to stop."""
        if self.stop():
            command = self.resume_command
            how = "nothing is kept" if command is None else f"continue with {command}"
            raise StoppedError(
                f"stopped after {number} of {self.run_state.target_rounds} rounds; {how}."
            )
        self.run_state.start_attempt(attempt)

    def _finish(
        self, number: int, played: RoundResult, began: float, trained_rounds: int | None
    ) -> RoundCompleted:
        """Store the result of a round, and notify the observers."""
        run_state, outcome = self.run_state, played.outcome
        every = self.prepared.federation.evaluate_every
        due = every and ((number + 1) % every == 0 or number + 1 == run_state.target_rounds)
        watch = self._watch
        scores = watch.score(run_state.coordinator.net) if watch is not None and due else None
        event = RoundCompleted(
            round=number,
            attempt=run_state.attempt - 1,
            contributors=outcome.contributors,
            dropped=outcome.dropped,
            guarantee_so_far=self.prepared.run_config.plan.guarantee_after(
                run_state.attempt_rounds()
            ),
            scores=scores,
            upload_bytes_per_site=outcome.upload_bytes,
            seconds_train=played.exchange_seconds,
            seconds_aggregate=time.perf_counter() - began - played.exchange_seconds,
            stages=played.stages,
            measured=outcome.measured,
            plan_state=run_state.coordinator.plan_state,
            trained_rounds=trained_rounds,
        )
        run_state.complete_round(event)
        self.notify(event)
        return event

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
            raise AttemptsSpentError(
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
        scored: list[int] = []

        def tell(site: int) -> None:
            scored.append(site)
            if self.prepared.federation.holdout_baselines:
                sites = self.prepared.run_config.federation_spec.sites
                self.notify(SiteScored(site=site, num_scored=len(scored), num_sites=sites))

        found = score_sites(
            self.prepared,
            self.run_state.coordinator.net,
            self.folder.state_dir,
            run=self.run_alone,
            progress=tell,
        )
        self.folder.write_site_scores(found)
        return own_scores(found)

    def _result(self, scores: Scores | None, own: OwnScores | None) -> Result:
        run_config, history = self.prepared.run_config, History(self.run_state.history)
        measured = measured_by_round(run_config, history)
        net = self.run_state.coordinator.net
        return Result(
            scores=scores,
            guarantee=run_config.plan.guarantee,
            aggregation=run_config.aggregator.confidentiality(run_config.federation_spec),
            membership=attack_bounds(run_config),
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
            session=run_config.session.hex(),
            versions=versions(),
            plugins=self.prepared.federation.plugins(),
            history=history,
            weights=parameters.state_dict(net),
            folder=None if self.folder is None else self.folder.path,
            data=self.prepared.dataset_info.name,
            is_personal=personalises(run_config.trainer, net),
            own=own,
            measured=None if not measured else measured_sum(run_config, history[-1]),
            measured_by_round=measured,
            provenance=collect_provenance(self.prepared.federation),
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
