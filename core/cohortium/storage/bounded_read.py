"""Files of a bounded size, read without memory for more than they have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

BLOCK: Final = 1 << 16
"""Bytes that are read at once."""


def read_bounded(path: Path, limit: int) -> bytes:
    """Return the first bytes of a file, `limit` + 1 at most.

    With more than `limit` bytes, the file is too large. The method `read` of a file would reserve
    as many bytes as it is asked for, however small the file is.

    Raises:
        OSError: The file cannot be read.
    """
    found = bytearray()
    with path.open("rb") as file:
        while block := file.read(min(BLOCK, limit + 1 - len(found))):
            found += block
    return bytes(found)
