"""Tables from TOML files and the command line, limited in size.

Their depth is limited, too. The text may come from anyone. Before parsing, the module refuses text
that could cost a parser much time. After parsing, it refuses tables that exceed the needs of a
study.
"""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Any

from cohortium.errors import RequestError, StudyError
from cohortium.storage.bounded_read import why_unreadable
from cohortium.text import escape_control_characters, is_printable, truncate

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAX_BYTES = 1 << 16
MAX_LEVELS = 16
"""Far more levels than any plugin's parameters need."""

MAX_VALUES = 1 << 14
"""Largest number of keys and values of all tables together."""

MAX_KEY_LENGTH = 200
"""Largest number of characters in a key."""

MAX_INTEGER = (1 << 63) - 1
"""Largest integer: TOML guarantees only 64 bits with a sign."""

_DEEP_KEY = re.compile(rf"(?<![A-Za-z0-9_-])(?:[A-Za-z0-9_-]++[ \t]*+\.[ \t]*+){{{MAX_LEVELS}}}")
"""Pattern of many words with dots, in keys or other text.

A parser's work and its memory grow with the square of the number of a key's parts.
"""

_QUOTED_PART = re.compile(r"""["'][ \t]*+\.""")
"""Pattern of a key's part that is not a bare word.

A key needs it for each such part.
"""

_MAX_QUOTED_PARTS = 64


def read(path: Path, *, what: str) -> dict[str, Any]:
    """Return the tables of the TOML file at `path`.

    Args:
        path: The file.
        what: Name of the file in an error.

    Raises:
        RequestError: The file cannot be read.
        StudyError: The file is not TOML, or is too large or too deep.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise StudyError(f"{what} {path} is larger than {MAX_BYTES} bytes.")
        # Some editors of Windows begin a file with a byte order mark, which TOML does not allow.
        text = data.decode("utf-8-sig")
    except OSError as error:
        reason = why_unreadable(path, error, suffix=".toml")
        raise RequestError(f"cannot read {what} {path}: {reason}.") from error
    except UnicodeDecodeError as error:
        raise StudyError(f"{path} is not a text file in UTF-8.") from error
    return loads(text, where=str(path))


def loads(text: str, *, where: str) -> dict[str, Any]:
    """Return the tables in `text`, whose source is `where`.

    Raises:
        StudyError: The text is not TOML, or is too large or too deep. Or it has a key or a number
            that no study can need.
    """
    if len(text) > MAX_BYTES:
        raise StudyError(f"{where} is larger than {MAX_BYTES} bytes.")
    _require_short_keys(text, where=where)
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # In addition to its own error, tomllib passes on Python's error about a number of 5,000
        # digits.
        raise StudyError(
            f"{where} is not valid TOML: {escape_control_characters(str(error))}."
        ) from error
    limit_nesting(tables, where=where)
    return tables


def parse(text: str) -> Any:
    """Return a value of the command line: TOML, or the text itself.

    Raises:
        StudyError: The value is too large or too deep, or has a key that no study can need.
    """
    if len(text) > MAX_BYTES:
        raise StudyError(f"a value on the command line is larger than {MAX_BYTES} characters.")
    _require_short_keys(text, where="--set")
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text.strip()


def limit_nesting(changes: Mapping[str, Any], *, where: str) -> None:
    """Refuse tables that are nested too deeply or have too many values.

    Work with such tables would be costly or fail.

    Raises:
        StudyError: The tables exceed a limit, a key cannot be shown, or a whole number has more
            than 64 bits.
    """
    level: list[Any] = [changes]
    count = 0
    for _ in range(MAX_LEVELS):
        inside: list[Any] = []
        for outer in level:
            for key in outer if isinstance(outer, dict) else ():
                _require_key(key, where=where)
            inside += outer.values() if isinstance(outer, dict) else outer
        count += len(inside)
        if count > MAX_VALUES:
            raise StudyError(f"{where} holds more than {MAX_VALUES:,} values.")
        for value in inside:
            if isinstance(value, int) and abs(value) > MAX_INTEGER:
                raise StudyError(f"{where}: a whole number has more than 64 bits; use a float.")
        level = [value for value in inside if isinstance(value, dict | list)]
    if level:
        raise StudyError(f"{where}: tables are nested deeper than {MAX_LEVELS} levels.")


def require_text(changes: Mapping[str, Any], *, where: str) -> None:
    """Refuse text from another party that cannot be shown on one line.

    Raises:
        StudyError: The tables have such text.
    """
    level: list[Any] = [changes]
    while level:
        value = level.pop()
        if isinstance(value, dict):
            level += value.values()
        elif isinstance(value, list):
            level += value
        elif isinstance(value, str) and not is_printable(value):
            raise StudyError(f"{where}: {truncate(value)} has characters that cannot be shown.")


def _require_short_keys(text: str, *, where: str) -> None:
    quoted = sum(1 for _ in _QUOTED_PART.finditer(text))
    if _DEEP_KEY.search(text) or quoted > _MAX_QUOTED_PARTS:
        raise StudyError(f"{where}: tables are nested deeper than {MAX_LEVELS} levels.")


def _require_key(key: str, *, where: str) -> None:
    if len(key) > MAX_KEY_LENGTH:
        raise StudyError(
            f"{where}: the key {truncate(key)} has more than {MAX_KEY_LENGTH} characters."
        )
    if not is_printable(key):
        raise StudyError(f"{where}: the key {truncate(key)} has characters that cannot be shown.")
