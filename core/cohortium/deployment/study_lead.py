"""The study lead's side of a deployment.

It is for engines that start the coordinator themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohortium.crypto.signing import SigningKey
from cohortium.errors import StudyError
from cohortium.federation import Federation
from cohortium.runs.resume_command import resume_command
from cohortium.runs.run_directory import study_path

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cohortium.roles.protocols import Engine, Observer
    from cohortium.runs.result import Result


def run_deployed_study(
    path: Path,
    engine: Callable[[Federation], Engine],
    *,
    out: Path,
    check_only: bool = False,
    evaluates: Path | None = None,
    sign_with: Path | None = None,
    observers: Sequence[Observer] = (),
) -> Result | tuple[str, ...]:
    """Run a deployment's study over an engine that has already started.

    Args:
        path: The study file. Files that it names are looked up next to it first.
        engine: Returns the engine, given the study.
        out: A new or empty folder for the run's record.
        check_only: Whether to ask the sites only, without training.
        evaluates: Folder of a finished run. Its model is evaluated at the sites, as the study's
            `[evaluation]` says, and nothing is trained.
        sign_with: File of the coordinator's signing key, or None. It signs the results.
        observers: Observers of every event, in addition to those that the study names.

    Returns:
        The result of the run, or with `check_only` the warnings.

    Raises:
        CohortiumError: The request was wrong, a site does not take part, or the run failed.
    """
    federation = Federation.read(path)
    if federation.data is None:
        raise StudyError(f"{path}: the study of a deployment declares its [data].")
    key = None if sign_with is None else SigningKey.read(sign_with)
    if check_only:
        return federation.check_sites(engine(federation))
    if evaluates is not None:
        return federation.evaluate(
            evaluates, out=out, observers=observers, engine=engine(federation), signing_key=key
        )
    return federation.run(out, observers=observers, engine=engine(federation), signing_key=key)


def resume_deployed_study(
    folder: Path,
    engine: Callable[[Federation], Engine],
    *,
    sign_with: Path | None = None,
    observers: Sequence[Observer] = (),
) -> Result:
    """Resume a deployment's run that was stopped, over an engine that has already started.

    The sites know the run by its session, so what they have spent counts once.

    Args:
        folder: The run's folder, with the study in it.
        engine: Returns the engine, given the study.
        sign_with: File of the key with which the run began, or None without one.
        observers: As for `run_deployed_study`.

    Returns:
        The result of the run.

    Raises:
        CohortiumError: There is no such run, it is complete, or a site or the run failed.
    """
    key = None if sign_with is None else SigningKey.read(sign_with)
    federation = Federation.read(study_path(folder))
    if federation.data is None:
        raise StudyError(
            f"the run in {folder} is a simulation; continue it with {resume_command(folder)}."
        )
    return federation.resume(
        folder, observers=observers, engine=engine(federation), signing_key=key
    )
