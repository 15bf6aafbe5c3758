"""The record of a search on disk: its plan and its choice.

Guarantees:
    The plan is durable before the first candidate begins, and the choice before the final run.
    Each file is written whole, and read strictly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec

from cohortium.errors import RecordError, RequestError, RunError
from cohortium.runs.run_directory import SEARCH
from cohortium.runs.signer import name_signer
from cohortium.storage.atomic import UNFINISHED, atomic_create, atomic_write
from cohortium.storage.bounded_read import read_if_present
from cohortium.storage.plain_json import decode_json
from cohortium.tuning.plain import as_plain, with_infinity
from cohortium.tuning.prices import TuningPlan
from cohortium.tuning.scores import Choice

if TYPE_CHECKING:
    from pathlib import Path

    from cohortium.crypto.signing import SigningKey

CHOICE, RESULT, TABLE, SIGNER = "choice.json", "result.json", "table.md", "signer"
"""Files in the folder of a search."""

MAX_BYTES = 1 << 26

T = TypeVar("T")


def read_plan(folder: Path) -> TuningPlan | None:
    """Return the plan of the search in `folder`, or None without one.

    Raises:
        RecordError: It is damaged, or cannot be read.
    """
    return _read(folder / SEARCH, TuningPlan)


def write_plan(folder: Path, plan: TuningPlan, signing_key: SigningKey | None = None) -> None:
    """Write the plan of a new search, after the name of the key that is to sign its final run.

    Raises:
        RequestError: The folder has a search already, or is not empty.
        RunError: It cannot be written.
    """
    if folder.exists() and any(map(_is_content, folder.iterdir())):
        raise RequestError(f"{folder} is not empty; give another folder with --out.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        name_signer(folder / SIGNER, signing_key)
        atomic_create(folder / SEARCH, _encode(plan))
    except FileExistsError as error:
        raise RequestError(f"another process has begun a search in {folder}.") from error
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}.") from error


def _is_content(path: Path) -> bool:
    """Return whether a file is more than a leftover of a process that was killed at its start."""
    return path.suffix != UNFINISHED and path.name != SIGNER


def read_choice(folder: Path) -> Choice | None:
    """Return the choice of the search in `folder`, or None before it.

    Raises:
        RecordError: It is damaged, or cannot be read.
    """
    return _read(folder / CHOICE, Choice)


def write(folder: Path, name: str, content: object) -> None:
    """Write one file of the search as JSON, or a text as it is.

    Raises:
        RunError: It cannot be written.
    """
    data = content.encode() if isinstance(content, str) else _encode(content)
    try:
        atomic_write(folder / name, data)
    except OSError as error:
        raise RunError(f"cannot write {folder / name}: {error.strerror}.") from error


def _encode(content: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(as_plain(content)), indent=2) + b"\n"


def _read(path: Path, kind: type[T]) -> T | None:
    data = read_if_present(path, MAX_BYTES, RecordError)
    if data is None:
        return None
    try:
        return msgspec.convert(with_infinity(decode_json(data, object)), kind)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        reason = str(error).splitlines()[0].replace("`", "").rstrip(".")
        raise RecordError(f"{path} is damaged: {reason}.") from error
