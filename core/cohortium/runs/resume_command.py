"""The command that continues a run, or evaluates one, as messages name it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from cohortium.catalog import construction
from cohortium.catalog.discovery import discover
from cohortium.errors import CohortiumError
from cohortium.roles.protocols import DeploymentEngine
from cohortium.runs.run_folder import STUDY
from cohortium.runs.signer import SIGNER
from cohortium.study import toml

if TYPE_CHECKING:
    from pathlib import Path


def resume_command(path: Path) -> str:
    """Return the command that resumes the run in `path`, between backquotes.

    The engine of a deployment may have tools of its own, which start the coordinator. A run that
    began with a signing key continues with that key alone, whose file is not known here.
    """
    is_signed = (path / SIGNER).exists()
    engine = deployment_engine(path)
    if engine is not None:
        return f"`{engine.coordinator_command(resume=str(path.absolute()), is_signed=is_signed)}`"
    signed = " --sign-with KEY" if is_signed else ""
    return f"`cohortium resume {shlex.quote(str(path))}{signed}`"


def deployment_engine(path: Path) -> DeploymentEngine | None:
    """Return the engine of the run in `path` if its own tools start the coordinator.

    A simulation has none. Nor has a run whose study or engine cannot be read: a command that
    continues it says why.
    """
    try:
        study = toml.read(path / STUDY, what="the study")
        if "data" not in study or not isinstance(study.get("engine"), dict):
            return None
        engine = construction.build_part(
            discover(), "engine", study["engine"], where=str(path / STUDY)
        )
    except CohortiumError:
        return None
    return engine if isinstance(engine, DeploymentEngine) else None
