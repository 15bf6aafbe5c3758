"""Files that a study pins by their SHA-256."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from cohortium.plugin import StudyError, escape_control_characters

if TYPE_CHECKING:
    from typing import BinaryIO

MAX_FILE_BYTES = 1 << 31
"""Largest file: 2 GiB."""

BLOCK_BYTES = 1 << 24
"""Bytes that are read at once."""


def read_pinned(path: str, sha256: str, *, key: str) -> bytes:
    """Return the content of a file, after a check of its SHA-256.

    Args:
        path: The file.
        sha256: Its SHA-256 in hexadecimal digits.
        key: The parameter that names the file, for an error.

    Guarantees:
        The bytes that are returned are the bytes that were hashed.

    Raises:
        StudyError: The file is missing, too large or another one.
    """
    shown = escape_control_characters(path)
    place = f"model.{key} = '{shown}'"
    try:
        with Path(path).open("rb") as file:
            content = _read(file)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise StudyError(
            f"{place} cannot be read ({escape_control_characters(str(why))}); put the file there, "
            "or name another."
        ) from error
    if len(content) > MAX_FILE_BYTES:
        raise StudyError(f"{place} has more than {MAX_FILE_BYTES:,} bytes; name a smaller file.")
    found = hashlib.sha256(content).hexdigest()
    if not sha256:
        raise StudyError(
            f"{place} needs model.{key}_sha256; the file here has {found}, which you should "
            "compare with its source."
        )
    if found != sha256.lower():
        raise StudyError(
            f"{place} has the SHA-256 {found}, and model.{key}_sha256 is {sha256.lower()}; put the "
            "study's file there."
        )
    return content


def _read(file: BinaryIO) -> bytes:
    """Return the content of `file`, with more than `MAX_FILE_BYTES` if it has more.

    One call for so many bytes would ask for the memory of a file of that size.
    """
    blocks, length = [], 0
    while length <= MAX_FILE_BYTES and (block := file.read(BLOCK_BYTES)):
        blocks.append(block)
        length += len(block)
    return b"".join(blocks)
