"""A number in the study file of a run's folder, whose author is not trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohortium.errors import StudyError
from cohortium.storage.plain_json import MAX_WHOLE_NUMBER
from cohortium.study import toml
from cohortium.text import truncate

if TYPE_CHECKING:
    from pathlib import Path


def stored_number(path: Path, key: str) -> int:
    """Return a whole number of the table `[federation]`, 1 if the file does not have it.

    Args:
        path: The study file.
        key: Key in the table.

    Raises:
        RequestError: The file cannot be read.
        StudyError: The file is no study, or has another value there.
    """
    table = toml.read(path, what="the study").get("federation", {})
    value = table.get(key, 1) if isinstance(table, dict) else table
    if type(value) is not int or not 0 <= value <= MAX_WHOLE_NUMBER:
        raise StudyError(
            f"{path} [federation]: {key} must be a whole number, not {truncate(value)}; put the "
            "file back as the run wrote it."
        )
    return value
