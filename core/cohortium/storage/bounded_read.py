"""Files of a bounded size, read without memory for more than they have."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cohortium.errors import CohortiumError

BLOCK: Final = 1 << 16
"""Bytes that are read at once."""


def why_unreadable(path: Path, error: OSError, *, suffix: str = "") -> str:
    """Return why a file cannot be read, and which file to give in place of a folder.

    Args:
        path: The file.
        error: The error of the operating system.
        suffix: Suffix of such files, as ".toml". If a folder holds one such file, it is named.
    """
    if not path.is_dir():
        return error.strerror or str(error)
    found = sorted(path.glob(f"*{suffix}"))[:2] if suffix else []
    return f"it is a folder; give {found[0] if len(found) == 1 else 'a file'}"


def read_bounded(
    path: Path,
    limit: int,
    refusal: Callable[[str], CohortiumError],
    *,
    what: str = "",
    remedy: str = "",
) -> bytes:
    """Return the content of a file of at most `limit` bytes.

    Args:
        path: The file.
        limit: Largest number of bytes.
        refusal: Type of the error, which is made from a sentence.
        what: Name of the file in the sentence, before its path.
        remedy: End of the sentence, without its full stop.

    Raises:
        CohortiumError: There is no such file, it cannot be read, or it has more bytes. The error
            is a `refusal`.
    """
    data = read_if_present(path, limit, refusal, what=what, remedy=remedy)
    if data is None:
        reason = os.strerror(errno.ENOENT)
        raise refusal(_sentence(f"cannot read {_name(what, path)}: {reason}", remedy))
    return data


def read_if_present(
    path: Path,
    limit: int,
    refusal: Callable[[str], CohortiumError],
    *,
    what: str = "",
    remedy: str = "",
) -> bytes | None:
    """Return the content of a file as `read_bounded` does, or None without a file.

    Raises:
        CohortiumError: The file cannot be read, or has more than `limit` bytes. The error is a
            `refusal`.
    """
    try:
        data = _first_bytes(path, limit + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = "it is a folder" if remedy and path.is_dir() else why_unreadable(path, error)
        fault = f"cannot read {_name(what, path)}: {reason}"
        raise refusal(_sentence(fault, remedy)) from error
    if len(data) > limit:
        raise refusal(_sentence(f"{_name(what, path)} is larger than {limit:,} bytes", remedy))
    return data


def _first_bytes(path: Path, number: int) -> bytes:
    """Return the first bytes of a file, `number` at most.

    The method `read` of a file would reserve as many bytes as it is asked for, however small the
    file is.
    """
    found = bytearray()
    with path.open("rb") as file:
        while block := file.read(min(BLOCK, number - len(found))):
            found += block
    return bytes(found)


def _name(what: str, path: Path) -> str:
    return f"{what} {path}" if what else str(path)


def _sentence(fault: str, remedy: str) -> str:
    return f"{fault}; {remedy}." if remedy else f"{fault}."
