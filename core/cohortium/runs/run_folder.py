"""The folder of a run's record, told from the other folders that Cohortium writes."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from cohortium.errors import RequestError
from cohortium.runs.rehearsal_mark import refuse_rehearsal
from cohortium.runs.result import OLDER, RESULT

if TYPE_CHECKING:
    from pathlib import Path

STUDY: Final = "study.toml"
"""Study of a run, which every record has."""

PROGRAM: Final = "model.pt2"
"""Program of `torch.export`, in the folder of an exported model."""

PUBLIC_MODEL: Final = "model.toml"
"""Description of the public part of a model, in the clinics' folder."""

SITE_FILE: Final = "site.toml"
"""Site file, in the folder of a hospital."""

_GIVEN: Final = "give the folder that `cohortium run` printed as its record"

_OTHERS: Final = MappingProxyType(
    {
        PROGRAM: "is an exported model, for use without Cohortium; give the folder of the run that "
        "it was exported from",
        PUBLIC_MODEL: "is the public part of a model, without its weights; use it with "
        "`cohortium predict` and the --encrypted or --parties of the model's owner",
        SITE_FILE: f"is a hospital's folder and holds no run; {_GIVEN}",
    }
)
"""Files that only folders of another kind have, with what such a folder is."""


def require_run_folder(path: Path) -> None:
    """Refuse a path that is not the folder of a run's record, in any state.

    Raises:
        RequestError: There is no such folder, or it holds something else. The sentence says what
            is there, and which folder to give.
    """
    if (path / STUDY).is_file():
        refuse_rehearsal(path)
        if (path / OLDER).exists():
            raise RequestError(
                f"{path} is a run's folder of an older form; use the version of cohortium that "
                "wrote it."
            )
        return
    raise RequestError(f"{path} {_describe(path)}.")


def _describe(path: Path) -> str:
    """Return what is at a path that is no run's folder, and what to give instead."""
    if not path.exists():
        return f"does not exist; {_GIVEN}"
    if not path.is_dir():
        inside = next((each for each in [*path.parents][:2] if (each / RESULT).is_file()), None)
        return f"is a file and no run's folder; {_GIVEN if inside is None else f'give {inside}'}"
    for name, told in _OTHERS.items():
        if (path / name).is_file():
            return told
    return _describe_folder(path) or f"holds no run: there is no {STUDY} in it; {_GIVEN}"


def _describe_folder(path: Path) -> str:
    """Return what a folder that holds others is, or "" if it is none."""
    cell = min(path.glob(f"*/seed-*/{STUDY}"), default=None)
    if cell is not None:
        return f"holds a grid; give the folder of one of its runs, such as {cell.parent}"
    run = min(path.glob(f"*/{STUDY}"), default=None)
    if run is not None:
        return f"holds folders of runs; give one of them, such as {run.parent}"
    return ""
