"""Strict reading of JSON in a run's folder, above all of `result.json`.

The author of the folder is not trusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from attrs import field, frozen

from cohortium.data.scores import Scores
from cohortium.errors import RecordError
from cohortium.privacy.guarantee import Guarantee
from cohortium.runs.history import Cell
from cohortium.runs.result import StoredResult
from cohortium.storage.bounded_read import read_if_present
from cohortium.storage.plain_json import decode_json

T = TypeVar("T")

MAX_BYTES: Final = 1 << 29
"""Largest size of a record's file, in bytes.

A result has a row for each round, and an event log a line.
"""


@frozen(kw_only=True)
class ResultFile(StoredResult):
    """Content of `result.json`, which `result.Result` writes."""

    history: tuple[dict[str, Cell], ...] = ()


@frozen(kw_only=True)
class ModelResult:
    """Part of `result.json` that a model's users need. That of an adapted model has no more.

    Attributes:
        guarantee: Guarantee of the run, or None without privacy.
        scores: Scores on the test images, or None without any.
        is_personal: Whether sites use networks of their own.
        weights_sha256: SHA-256 of the final weights.
        versions: Versions of Python and of packages.
    """

    guarantee: Guarantee | None
    scores: Scores | None = field(default=None, repr=False)
    is_personal: bool = False
    weights_sha256: str
    versions: Mapping[str, str] = field(repr=False)


_Result = TypeVar("_Result", ResultFile, ModelResult)


def read_result(path: Path, kind: type[_Result]) -> _Result | None:
    """Return the content of a `result.json`, or None if there is no such file.

    Args:
        path: The file.
        kind: `ResultFile`, or `ModelResult` for the part that a model's users need.

    Raises:
        RecordError: It is damaged, or cannot be read.
    """
    data = read_if_present(path, MAX_BYTES, RecordError)
    if data is None:
        return None
    where = str(path)
    found: _Result = convert(decode(data, dict[str, Any], where=where), kind, where=where)
    require_consistent(found.scores, where=where)
    if isinstance(found, ResultFile):
        for part in (found.measured, *found.measured_by_round):
            require_consistent(part, where=where)
    return found


def require_consistent(part: Any, *, where: str) -> None:
    """Refuse scores, or a measurement, whose values contradict one another.

    Args:
        part: A value with an `inconsistency`, or None.
        where: Its place in an error.

    Raises:
        RecordError: They do.
    """
    if part is not None and part.inconsistency:
        raise RecordError(f"{where} is damaged: {part.inconsistency}.")


def decode(data: bytes, kind: type[T], *, where: str) -> T:
    """Return the value of type `kind` that JSON describes.

    Raises:
        RecordError: It describes another one.
    """
    try:
        return decode_json(data, kind, _path)
    except (RecursionError, ValueError) as error:
        raise _damaged(where, error) from error


def convert(value: object, kind: type[T], *, where: str) -> T:
    """Return the value of type `kind` that plain values describe.

    Raises:
        RecordError: They describe another one.
    """
    try:
        return msgspec.convert(value, kind, dec_hook=_path)
    except (RecursionError, ValueError) as error:
        raise _damaged(where, error) from error


def _path(kind: type, value: object) -> Path:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(kind)


def _damaged(where: str, error: Exception) -> RecordError:
    reason = str(error).partition("\n")[0].replace("`", "").rstrip(".")
    return RecordError(f"{where} is damaged: {reason}.")
