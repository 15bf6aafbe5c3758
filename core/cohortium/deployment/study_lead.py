"""The study lead's side of a deployment, for an engine that starts the coordinator itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohortium.errors import StudyError
from cohortium.federation import Federation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cohortium.roles.protocols import Engine
    from cohortium.runs.result import Result


def run_deployed_study(
    path: Path, engine: Callable[[Federation], Engine], *, out: Path, check_only: bool = False
) -> Result | tuple[str, ...]:
    """Run the study in a file to its end, or only ask the hospitals whether they would take part.

    Args:
        path: The study file.  What it names is looked for beside it first.
        engine: Makes, of the study, the engine that is at work already.
        out: A new or empty folder for the run's record.
        check_only: Train nothing.

    Returns:
        The result; of a muster its warnings.

    Raises:
        CohortiumError: The request was wrong, or a hospital does not take part, or the run failed.
    """
    federation = Federation.read(path)
    if federation.data is None:
        raise StudyError(f"{path}: the study of a deployment declares its [data].")
    if check_only:
        return federation.check_sites(engine(federation))
    return federation.run(out, engine=engine(federation))
