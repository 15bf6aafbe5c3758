"""Files that a crash cannot tear: made beside their place, made durable, then moved there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def write_whole(path: Path, data: bytes) -> None:
    """Put `data` at `path`, in place of what was there.

    Guarantees:
        A reader, or a crash, sees the old file or the new one and nothing between.

    Raises:
        OSError: It cannot be written; the old file stands.
    """
    with _beside(path, data) as temporary:
        temporary.replace(path)


def create_whole(path: Path, data: bytes) -> None:
    """Put `data` at `path`, where nothing may be yet; only the owner can read it.

    Raises:
        FileExistsError: Something is there; it stands.
        OSError: It cannot be written.
    """
    with _beside(path, data) as temporary:
        # A link, unlike a move, never replaces.
        os.link(temporary, path)


@contextlib.contextmanager
def _beside(path: Path, data: bytes) -> Iterator[Path]:
    """A durable temporary file beside `path`, of mode 0600, gone in the end."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
