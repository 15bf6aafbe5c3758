"""A search: its candidates, its choice and its final run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attrs import field, frozen

from cohortium import reporting
from cohortium.catalog.part_results import load_splits
from cohortium.errors import (
    AttemptsSpentError,
    CohortiumError,
    RecordError,
    RequestError,
    RunError,
    StoppedError,
)
from cohortium.runs.result import BEST, EVALUATION, RESULT
from cohortium.runs.run_directory import CHECKPOINT, LEDGER, has_run, is_finished
from cohortium.runs.saved_weights import read_weights, score_of
from cohortium.runs.signer import require_signer
from cohortium.runs.stored_result import ResultFile, read_result
from cohortium.tuning import record
from cohortium.tuning.planning import plan_tuning, search_digest
from cohortium.tuning.scores import CandidateScore, Choice, TuningResult
from cohortium.tuning.settings import GIVEN
from cohortium.tuning.studies import candidate_study, final_study, main_part, require_tunable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cohortium.crypto.signing import SigningKey
    from cohortium.data.splits import Splits
    from cohortium.federation import Federation
    from cohortium.roles.protocols import Observer
    from cohortium.tuning.prices import TuningPlan
    from cohortium.tuning.settings import Tuning

FINAL = "final"
"""Folder of the final run in that of the search."""


def _never_stop() -> bool:
    """Return False at every call."""
    return False


def _ignore(_told: object) -> None:
    """Do nothing."""


def tune(
    federation: Federation,
    tuning: Tuning,
    out: str | Path,
    *,
    observers: Sequence[Observer] = (),
    stop: Callable[[], bool] = _never_stop,
    planned: Callable[[TuningPlan], None] = _ignore,
    scored: Callable[[CandidateScore], None] = _ignore,
    signing_key: SigningKey | None = None,
) -> TuningResult:
    """Choose settings by candidate runs, and run the study with the best, within its ε.

    An interrupted search in `out` continues.

    Args:
        federation: The study.  Its ε covers the search and the final run.
        tuning: The search.
        out: Folder of the search, which has a folder for each run.
        observers: Observers of every run's events.
        stop: Called before every attempt.  Once it returns true, the search stops there.
        planned: Receives the plan before the first round.
        scored: Receives each candidate's score.
        signing_key: Key that signs the result of the final run, and that of its evaluation, as the
            coordinator.  A search that began with a key continues with this key alone.

    Guarantees:
        The price of everything is in the plan, which is durable before the first round.
        Each attempt of each candidate and of the final run is charged to one ledger before it
        begins.  No charged attempt is repeated, however often the search is interrupted.
        The guarantee of the final run covers the whole search.
        The choice depends on the noised scores, or on public images, alone.

    Raises:
        RequestError: `out` holds something else, or a search that is complete.
        StudyError: The search cannot be run in its present form.
        PrivacyError: It cannot be paid for.
        RunError: No candidate could be scored, or the final run failed.
        StoppedError: `stop` returned true.  The same call continues the search.
    """
    folder = Path(out)
    if (folder / record.RESULT).exists():
        raise RequestError(
            f"the search in {folder} is finished; its result is {folder / record.RESULT}."
            f"{_difference(federation, tuning, folder)}"
        )
    require_tunable(federation, tuning)
    assert federation.dataset is not None, "a simulation has data"
    splits = load_splits(federation.dataset)
    plan = record.read_plan(folder)
    if plan is None:
        plan = plan_tuning(federation, tuning)
        planned(plan)
        record.write_plan(folder, plan, signing_key)
    else:
        _require_same(plan, federation, tuning, splits, folder)
        _require_signer(folder, signing_key)
        planned(plan)
    search = _Search(
        federation=federation,
        tuning=tuning,
        plan=plan,
        folder=folder,
        part=main_part(splits),
        observers=observers,
        stop=stop,
        signing_key=signing_key,
    )
    try:
        choice = record.read_choice(folder)
        if choice is None:
            choice = search.choose(scored)
            record.write(folder, record.CHOICE, choice)
        is_lost = search.run_final(choice)
    except StoppedError as error:
        raise StoppedError("the search was stopped; the same command continues it.") from error
    final = read_result(folder / FINAL / RESULT, ResultFile)
    if final is None:
        raise RecordError(f"{folder / FINAL} has no result, though its run is finished.")
    result = TuningResult(
        plan=plan, choice=choice, final=final, is_evaluation_lost=is_lost, folder=folder
    )
    record.write(folder, record.TABLE, result.markdown())
    # Last: it says that the search is finished.
    record.write(folder, record.RESULT, result.as_json())
    return result


def _difference(federation: Federation, tuning: Tuning, folder: Path) -> str:
    """Return a sentence if a finished search is another one than the given, or ""."""
    try:
        require_tunable(federation, tuning)
        assert federation.dataset is not None, "a simulation has data"
        plan, splits = record.read_plan(folder), load_splits(federation.dataset)
    except CohortiumError:
        # The search is finished in any case, and its data may be gone.
        return ""
    if plan is None or plan.digest == search_digest(federation, tuning, splits):
        return ""
    return (
        " It is the search of another study, of other settings, candidates or data than those "
        "given now; to run this one, give another folder with --out."
    )


def _require_same(
    plan: TuningPlan, federation: Federation, tuning: Tuning, splits: Splits, folder: Path
) -> None:
    """Refuse to continue another search, or one whose ledger is gone.

    Raises:
        RequestError: The folder holds another search.
        RunError: The ledger is missing.
    """
    if plan.digest != search_digest(federation, tuning, splits):
        raise RequestError(
            f"{folder} holds the search of another study, of other candidates or of other data; "
            "give another folder with --out."
        )
    begun = any((each / CHECKPOINT).exists() for each in folder.iterdir())
    if begun and not (folder / LEDGER).exists():
        raise RunError(
            f"{folder / LEDGER} is gone, though attempts are charged there; put the whole folder "
            "back as it was, or start another search."
        )


def _require_signer(folder: Path, key: SigningKey | None) -> None:
    """Refuse to continue without the key that is to sign, or with a key that comes too late.

    Raises:
        RequestError: The search began with another key, or its final run is finished without one.
    """
    final = folder / FINAL
    if key is not None and is_finished(final) and not (folder / record.SIGNER).exists():
        raise RequestError(
            f"the run in {final} was finished without a signature; leave --sign-with out, and sign "
            "it with `cohortium sign`."
        )
    require_signer(folder / record.SIGNER, key, result=final)


@frozen(eq=False, kw_only=True)
class _Search:
    """The runs of a search, each in a folder of its own.

    Attributes:
        federation: The study.
        tuning: The search.
        plan: Its plan.
        folder: Its folder.
        part: Part of the task's scores that has the main score.
        observers: Observers of every run's events.
        stop: Whether the user has asked to stop.
        signing_key: Key that signs the result of the final run, or None.
    """

    federation: Federation
    tuning: Tuning
    plan: TuningPlan
    folder: Path
    part: str
    observers: Sequence[Observer]
    stop: Callable[[], bool]
    signing_key: SigningKey | None = field(default=None, repr=False)

    def choose(self, scored: Callable[[CandidateScore], None]) -> Choice:
        """Run every candidate, and return the choice.

        Raises:
            RunError: No candidate could be scored.
        """
        found = []
        for number, name in enumerate(self.plan.drawn):
            score = self._candidate(number, name)
            scored(score)
            found.append(score)
        if not found:
            return Choice(chosen=GIVEN, scores=())
        choice = Choice.of(tuple(found))
        if choice is None:
            raise RunError(
                f"no candidate of the search in {self.folder} could be scored "
                f"({found[0]}); start another search with other values, more rounds or a larger "
                "share."
            )
        return choice

    def run_final(self, choice: Choice) -> bool:
        """Run the study with the chosen settings, unless it is finished.

        Returns:
            Whether the run is finished, and its evaluation is lost: no attempt is left for it.
        """
        study = final_study(self.federation, self.tuning, self.plan, choice.chosen)
        folder = self.folder / FINAL
        try:
            self._run(study, folder, self.signing_key)
        except AttemptsSpentError:
            if not is_finished(folder):
                raise
            reporting.write([folder])
            return True
        return False

    def _candidate(self, number: int, name: str) -> CandidateScore:
        """Run one candidate, unless it is finished, and return its score.

        A candidate that fails has no score.  Its cost is counted in any case.
        """
        study = candidate_study(self.tuning, self.plan, number, self.part)
        run = f"{number + 1:02d}-{name}"
        try:
            self._run(study, self.folder / run)
        except RunError as error:
            return CandidateScore(run=run, candidate=name, failure=str(error))
        return self._score(run, name)

    def _run(self, study: Federation, folder: Path, key: SigningKey | None = None) -> None:
        """Bring one run to its end, with its evaluation."""
        wanted = [folder] if study.evaluation is None else [folder, folder / EVALUATION]
        if all(map(is_finished, wanted)):
            return
        act = study.resume if has_run(folder) else study.run
        act(folder, observers=self.observers, stop=self.stop, signing_key=key)
        reporting.write([folder])

    def _score(self, run: str, name: str) -> CandidateScore:
        """Return the score of a finished candidate."""
        folder = self.folder / run
        result = read_result(folder / RESULT, ResultFile)
        rounds = 0 if result is None else result.rounds
        if self.plan.score == "public":
            metrics = reporting.read(folder).main_metric
            _, notes = read_weights(folder / BEST)
            return CandidateScore(
                run=run,
                candidate=name,
                metric=metrics,
                value=score_of(notes, folder / BEST),
                rounds=rounds,
            )
        measured = read_result(folder / EVALUATION / RESULT, ResultFile)
        if measured is None or measured.measured is None:
            raise RecordError(f"{folder / EVALUATION} has no result, though its run is finished.")
        main = measured.measured.estimates[0]
        return CandidateScore(
            run=run,
            candidate=name,
            metric=main.metric,
            value=main.value,
            low=main.low,
            high=main.high,
            rounds=rounds,
        )
