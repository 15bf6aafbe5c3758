"""Evaluation of a trained model at the sites of its run."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from cohortium.catalog import construction
from cohortium.catalog.discovery import discover
from cohortium.catalog.toml_tables import to_table
from cohortium.errors import PluginError, RequestError, StudyError
from cohortium.runs.dataset_info import read_dataset_info
from cohortium.runs.launch import resume, start
from cohortium.runs.personal_mark import refuse_personal
from cohortium.runs.prepare import prepare
from cohortium.runs.result import LAST, RESULT
from cohortium.runs.resume_command import resume_command
from cohortium.runs.run_directory import RunDirectory, has_run
from cohortium.runs.run_folder import STUDY, require_run_folder
from cohortium.runs.saved_weights import read_weights, rounds_of
from cohortium.runs.site_evaluations import EvaluatedWeights
from cohortium.study import toml
from cohortium.study.evaluation_study import evaluation_study
from cohortium.study.stored_number import stored_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from cohortium.crypto.signing import SigningKey
    from cohortium.roles.protocols import Engine, Observer
    from cohortium.runs.prepare import PreparedStudy
    from cohortium.runs.result import Result
    from cohortium.study.measurement import EvaluationPlan
    from cohortium.study.study import Study

ANOTHER = "`cohortium evaluate` with --out makes a second evaluation, which costs again"


def prepare_evaluation(
    study: Study,
    evaluation: EvaluationPlan,
    trained: PreparedStudy | None = None,
    *,
    releases: int | None = None,
) -> PreparedStudy:
    """Prepare the evaluation of a study's model, or refuse it.

    Args:
        study: The study that trains.
        evaluation: The evaluation.
        trained: The prepared study that trains, whose data are used again.  None loads them.
        releases: Number of evaluations.  None takes those that are due while `study` trains.

    Raises:
        CohortiumError: The evaluation cannot be run in its present form.
    """
    loaded = None if trained is None else trained.loaded_splits
    return prepare(evaluation_study(study, evaluation, releases), loaded=loaded)


def evaluate(
    prepared: PreparedStudy,
    evaluated: EvaluatedWeights,
    *,
    out: Path | None,
    observers: Sequence[Observer],
    stop: Callable[[], bool],
    engine: Engine | None = None,
    signing_key: SigningKey | None = None,
) -> Result:
    """Run an evaluation to its end, or continue the one in `out`.

    An evaluation is a run of its own, in a folder of its own.

    Args:
        prepared: The prepared evaluation.
        evaluated: Weights of the model.
        out: Folder of its record, or None.
        observers: Observers of every event.
        stop: Whether the user has asked to stop.
        engine: A running engine to use in place of the study's.
        signing_key: Key that signs the result, or None.

    Guarantees:
        The weights do not change.
        An interrupted attempt counts as spent, as in every run.

    Raises:
        RequestError: The evaluation in `out` is complete.
        CohortiumError: The run failed.
    """
    if out is None or not has_run(out):
        return start(
            prepared,
            out=out,
            observers=observers,
            stop=stop,
            engine=engine,
            evaluated=evaluated,
            signing_key=signing_key,
        )
    with RunDirectory.reopen(out, advice=ANOTHER, signing_key=signing_key) as folder:
        return resume(
            prepared, folder, observers=observers, stop=stop, engine=engine, evaluated=evaluated
        )


def planned_releases(out: Path) -> int:
    """Return the number of evaluations that the run in `out` was planned for, 1 if there is none.

    Raises:
        RequestError: The study of the run cannot be read.
        StudyError: It is damaged.
    """
    if not has_run(out):
        return 1
    return stored_number(out / STUDY, "rounds")


def final_weights(folder: Path) -> EvaluatedWeights:
    """Return the final weights of the finished run in `folder`.

    Raises:
        RequestError: The run is not finished, or the model must not leave its hospital.
        DataError: The weights are damaged.
    """
    refuse_personal(folder, purpose="evaluated at other sites")
    require_run_folder(folder)
    if not (folder / RESULT).exists():
        raise RequestError(
            f"the run in {folder} is not finished, so it has no final weights; continue it with "
            f"{resume_command(folder)}."
        )
    tensors, notes = read_weights(folder / LAST)
    return EvaluatedWeights(tensors, rounds_of(notes, folder / LAST))


def require_same_model(folder: Path, prepared: PreparedStudy) -> None:
    """Refuse an evaluation by another model, or on other images, than those of a run.

    Weights of equal shapes fit another order of the classes, and another preparation of the images.
    Their scores would then be wrong.

    Args:
        folder: Folder of the run.
        prepared: The prepared evaluation.

    Raises:
        StudyError: The sites' images or the study's model differ from those of the run.
        DataError: A file of the run is damaged.
        PluginError: The plugin of the run's task cannot be used.
    """
    wanted, found = read_dataset_info(folder).spec, prepared.run_config.spec
    if not wanted.describes(found):
        raise StudyError(
            f"the sites' images do not fit the model of {folder}: {wanted.difference(found)}."
        )
    path, catalog = folder / STUDY, discover()
    theirs = toml.read(path, what="the study").get("model", {})
    if not isinstance(theirs, dict):
        raise StudyError(f"{path}: model must be a table; put the file back as the run wrote it.")
    # An older version may have written it, without the parameters that are new since.
    # A class that no plugin offers cannot be built.
    with contextlib.suppress(PluginError, StudyError):
        trained = construction.build_part(catalog, "model", theirs, where=str(path))
        theirs = to_table(catalog, "model", trained)
    ours = dict(_parameters(to_table(catalog, "model", prepared.federation.model)))
    theirs = dict(_parameters(theirs))
    for key in dict.fromkeys([*theirs, *ours]):
        if ours.get(key) != theirs.get(key):
            here, there = (table.get(key, "not set") for table in (ours, theirs))
            raise StudyError(
                f"model.{key} is {here} in the study and {there} in the run of {folder}; evaluate "
                "its weights with its own model."
            )


def _parameters(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the parameters of a model by key, without the places of its files."""
    for key, value in table.items():
        if key == "folder" or f"{key}_sha256" in table:
            continue
        if isinstance(value, dict):
            yield from _parameters(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
