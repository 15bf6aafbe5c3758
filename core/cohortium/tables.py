"""Tables from TOML, of files and of the command line, bounded in size and depth."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

from cohortium.errors import StudyError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_MOST_BYTES = 1 << 16
_MOST_LEVELS = 16
"""Far more than any plugin's parameters need."""


def read(path: Path, *, what: str) -> dict[str, Any]:
    """The tables of the TOML file at `path`.

    Args:
        path: The file.
        what: How an error names it.

    Raises:
        StudyError: It cannot be read, is not TOML, or is too large or too deep.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise StudyError(f"{what} {path} is larger than {_MOST_BYTES} bytes.")
        # Some editors of Windows begin a file with a mark that TOML does not know.
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise StudyError(f"cannot read {what} {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise StudyError(f"{path} is not a text file in UTF-8.") from error
    return loads(text, where=str(path))


def loads(text: str, *, where: str) -> dict[str, Any]:
    """The tables in `text`, which is from `where`.

    Raises:
        StudyError: It is not TOML, or is too deep.
    """
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # Beside its own error tomllib lets through what Python says of a number of 5,000 digits.
        raise StudyError(f"{where} is not valid TOML: {error}.") from error
    require_shallow(tables, where=where)
    return tables


def parse(text: str) -> Any:
    """A value given on the command line: TOML, or else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text.strip()


def require_shallow(changes: Mapping[str, Any], *, where: str) -> None:
    """Refuse what is nested so deeply that comparing or showing it would fail.

    Raises:
        StudyError: It is.
    """
    level: list[Any] = [changes]
    for _ in range(_MOST_LEVELS):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    if level:
        raise StudyError(f"{where}: tables are nested deeper than {_MOST_LEVELS} levels.")
