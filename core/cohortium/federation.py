"""A federation: a study that can run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import attrs
from attrs import frozen

from cohortium.catalog.discovery import discover
from cohortium.errors import RequestError, StudyError
from cohortium.study.study import Study, resolved
from cohortium.study.study_file import read

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cohortium.crypto.signing import SigningKey
    from cohortium.roles.protocols import Engine, Observer
    from cohortium.runs.prepare import PreparedStudy
    from cohortium.runs.result import Result
    from cohortium.runs.site_evaluations import DueEvaluations
    from cohortium.study.measurement import EvaluationPlan

EVENT_LOG_OBSERVER = "events"
"""The observer that stores a run's events."""


def _never_stop() -> bool:
    """Return False at every call."""
    return False


def _recorders(*, is_kept: bool) -> list[Observer]:
    """Return the event log's observer, if it is installed and the run is kept."""
    if not is_kept or EVENT_LOG_OBSERVER not in discover().names("observer"):
        return []
    return [resolved("observer", EVENT_LOG_OBSERVER)]


@frozen(kw_only=True)
class Federation(Study):
    """A study that can run, with the attributes of `Study`.

    Examples:
        >>> from cohortium import Federation
        >>> Federation(
        ...     dataset="phantom", model="cnn", trainer="fedavg", privatizer="none",
        ...     aggregator="secagg", sites=10, rounds=3,
        ... ).partitioner
        IID()

    Raises:
        PluginError: No usable plugin offers a given name.
        StudyError: A part does not fill its role, or numbers contradict one another.
    """

    @classmethod
    def read(cls, path: str | Path | None, settings: Sequence[str] = ()) -> Federation:
        """Return the federation that a study file describes.

        Args:
            path: The file, or None for the quick start.
            settings: Changes as `table.key=value`. The value is TOML, or else a string.

        Raises:
            RequestError: The file cannot be read.
            StudyError: It describes an impossible study.
            PluginError: The file names a plugin that cannot be used.
        """
        return read(None if path is None else Path(path), settings, into=cls)

    def run(
        self,
        out: str | Path | None = None,
        *,
        observers: Sequence[Observer] = (),
        stop: Callable[[], bool] = _never_stop,
        engine: Engine | None = None,
        signing_key: SigningKey | None = None,
    ) -> Result:
        """Run the study to its end.

        Args:
            out: A new or empty folder for the run's record. None writes nothing to disk. If the
                observer `events` is installed, it writes the events there.
            observers: Observers of every event, in addition to those that the study names.
            stop: Called before every attempt. Once it returns true, the run stops there.
            engine: A running engine to use in place of the study's.
            signing_key: Key that signs `result.json` as the coordinator, in the same step as it is
                written. It is no site's key.

        Raises:
            StoppedError: `stop` returned true. `resume` continues the run.
            CohortiumError: The request was wrong, in which case nothing has started, or the run
                failed.
        """
        from cohortium.runs.run_directory import require_empty

        if out is not None:
            require_empty(Path(out))
        elif signing_key is not None:
            raise RequestError("a run without a folder has no result to sign.")
        from cohortium.learning.evaluation import torch_threads
        from cohortium.runs.launch import start

        with torch_threads(self.threads):
            folder = None if out is None else Path(out)
            prepared = self.prepare()
            # Refused now rather than after the training.
            evaluation = self._prepare_evaluation(prepared)
            result = start(
                prepared,
                out=folder,
                observers=self._observers(observers, is_kept=out is not None),
                stop=stop,
                engine=engine,
                due=self._due(evaluation, is_kept=out is not None),
                signing_key=signing_key,
            )
            if evaluation is None or result.evaluation is not None:
                return result
            return self._with_evaluation(
                result, evaluation, folder, stop=stop, engine=engine, signing_key=signing_key
            )

    def resume(
        self,
        out: str | Path,
        *,
        observers: Sequence[Observer] = (),
        stop: Callable[[], bool] = _never_stop,
        engine: Engine | None = None,
        signing_key: SigningKey | None = None,
    ) -> Result:
        """Resume a run of this study that was stopped, killed or failed.

        Args:
            out: The run's folder.
            observers: As for `run`. They receive the previous rounds in `RunStarted.history`.
            stop: As for `run`.
            engine: As for `run`.
            signing_key: As for `run`. A run that began with a key continues with this key alone.

        Guarantees:
            The run continues from the last completed round, with the same weights, optimizer and
            sites' state.
            Without privacy, or with seeded noise, the result has the very weights of a run without
            interruption.
            Otherwise an interrupted attempt counts as spent and a new one takes its place.
            If no retry is left for it, the run ends with one round fewer for each such attempt.
            It never has more attempts than the guarantee covers.
            An evaluation that is due for the completed rounds comes before the next round.
            If only the evaluation at the sites was interrupted, that continues, and the result is
            its own.

        Raises:
            RequestError: There is no such run, it is complete, or another process is driving it.
            StudyError: The run was started with another study, other data or another plan.
            RunError: The run's folder is damaged, or the run failed again.
            StoppedError: `stop` returned true.
        """
        from cohortium.learning.evaluation import torch_threads
        from cohortium.runs.launch import resume
        from cohortium.runs.result import EVALUATION
        from cohortium.runs.run_directory import RunDirectory, is_finished, require_not_inner

        if self.measurement is not None and self.rounds > 1:
            require_not_inner(Path(out))
        is_evaluated = is_finished(Path(out) / EVALUATION)
        if self.evaluation is not None and is_finished(Path(out)) and not is_evaluated:
            return self.evaluate(
                out, observers=observers, stop=stop, engine=engine, signing_key=signing_key
            )
        with (
            RunDirectory.reopen(Path(out), signing_key=signing_key) as folder,
            torch_threads(self.threads),
        ):
            told, prepared = self._observers(observers, is_kept=True), self.prepare()
            evaluation = self._prepare_evaluation(prepared)
            due = self._due(evaluation, is_kept=True)
            result = resume(prepared, folder, observers=told, stop=stop, engine=engine, due=due)
        if evaluation is None or result.evaluation is not None:
            return result
        with torch_threads(self.threads):
            return self._with_evaluation(
                result, evaluation, Path(out), stop=stop, engine=engine, signing_key=signing_key
            )

    def evaluate(
        self,
        run: str | Path,
        evaluation: EvaluationPlan | None = None,
        *,
        out: str | Path | None = None,
        observers: Sequence[Observer] = (),
        stop: Callable[[], bool] = _never_stop,
        engine: Engine | None = None,
        signing_key: SigningKey | None = None,
    ) -> Result:
        """Evaluate the final weights of a run at the sites of this study.

        An evaluation that was interrupted continues.

        Args:
            run: Folder of the finished run.  Its weights may be of another federation's study with
                the same model.
            evaluation: The evaluation.  None takes the study's own.
            out: Folder of the evaluation's record.  None takes the folder `evaluation` in `run`.
            observers: Observers of every event.
            stop: Called before every attempt. Once it returns true, the evaluation stops there.
            engine: A running engine to use in place of the study's.
            signing_key: As for `run`.

        Guarantees:
            The sites release one noised sum, which the guarantee of the result covers.
            The weights do not change.

        Raises:
            RequestError: The run is not finished, or its evaluation is.
            StudyError: The study has no evaluation, or one that contradicts it.  Or its model or
                images are not those of the run.
            CohortiumError: The evaluation failed.
        """
        from cohortium.learning.evaluation import torch_threads
        from cohortium.runs.evaluate import (
            evaluate,
            final_weights,
            planned_releases,
            prepare_evaluation,
            require_same_model,
        )
        from cohortium.runs.result import EVALUATION

        # First: no evaluation helps a model that must not leave its hospital.
        evaluated = final_weights(Path(run))
        chosen = evaluation or self.evaluation
        if chosen is None:
            raise StudyError(
                "the study has no [evaluation]; add one, or give its epsilon and delta."
            )
        folder = Path(run) / EVALUATION if out is None else Path(out)
        with torch_threads(self.threads):
            prepared = prepare_evaluation(self, chosen, releases=planned_releases(folder))
            require_same_model(Path(run), prepared)
            return evaluate(
                prepared,
                evaluated,
                out=folder,
                observers=self._observers(observers, is_kept=True),
                stop=stop,
                engine=engine,
                signing_key=signing_key,
            )

    def _prepare_evaluation(self, trained: PreparedStudy) -> PreparedStudy | None:
        """Prepare the study's evaluation, if it has one."""
        from cohortium.runs.evaluate import prepare_evaluation

        if self.evaluation is None:
            return None
        return prepare_evaluation(self, self.evaluation, trained)

    def _due(self, evaluation: PreparedStudy | None, *, is_kept: bool) -> DueEvaluations | None:
        """Return the evaluations that the connection of the training serves, or None.

        Hospitals accept both before the training, so the loss of one later leaves the others.
        Observers of evaluations between rounds keep the record alone: others hear of them from the
        training's events.
        """
        from cohortium.runs.site_evaluations import DueEvaluations

        if self.evaluation is None or evaluation is None:
            return None
        if evaluation.federation.rounds > 1:
            every, told = self.evaluation.every, _recorders(is_kept=is_kept)
        elif evaluation.is_deployment:
            every, told = 0, self._observers((), is_kept=is_kept)
        else:
            return None
        return DueEvaluations(prepared=evaluation, every=every, observers=told)

    def _with_evaluation(
        self,
        result: Result,
        evaluation: PreparedStudy,
        folder: Path | None,
        *,
        stop: Callable[[], bool],
        engine: Engine | None = None,
        signing_key: SigningKey | None = None,
    ) -> Result:
        """Return `result` with the evaluation of its weights."""
        from cohortium.runs.evaluate import evaluate
        from cohortium.runs.result import EVALUATION
        from cohortium.runs.site_evaluations import EvaluatedWeights

        measured = evaluate(
            evaluation,
            EvaluatedWeights(result.weights, result.rounds),
            out=None if folder is None else folder / EVALUATION,
            observers=self._observers((), is_kept=folder is not None),
            stop=stop,
            engine=engine,
            signing_key=signing_key,
        )
        return attrs.evolve(result, evaluation=measured)

    def _observers(self, others: Sequence[Observer], *, is_kept: bool) -> list[Observer]:
        """Return the study's observers, `others`, and the event log's."""
        told: list[Observer] = [resolved("observer", name) for name in self.observers]
        told += others
        return [*told, *(each for each in _recorders(is_kept=is_kept) if each not in told)]

    def check_sites(self, engine: Engine | None = None) -> tuple[str, ...]:
        """Ask every hospital of a deployment whether it would take part.

        The method trains nothing. If the study has an evaluation, it asks for that, too.

        Args:
            engine: A running engine to use in place of the study's.

        Returns:
            Warnings.

        Raises:
            StudyError: A hospital does not take part. The message names each one and its reason.
        """
        from cohortium.runs.evaluate import prepare_evaluation
        from cohortium.runs.invite import invite_to_all

        prepared = self.prepare()
        if not prepared.is_deployment:
            raise StudyError("a simulation has no hospitals to ask; declare [data] for some.")
        asked = [prepared]
        if self.evaluation is not None:
            asked.append(prepare_evaluation(self, self.evaluation, prepared))
        exchange = (engine or self.engine).connect(None)
        try:
            found = invite_to_all(exchange, asked)
        finally:
            exchange.close()
        return found

    def prepare(self) -> PreparedStudy:
        """Load, partition and plan, and refuse all that can be refused.

        The method trains nothing.

        Raises:
            CohortiumError: The study cannot be run in its present form.
        """
        from cohortium.runs.prepare import prepare

        return prepare(self)
