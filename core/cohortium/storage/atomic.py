"""Files that a crash cannot tear.

They are made next to their place, made durable, and then moved there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

UNFINISHED = ".cohortium-part"
"""Suffix of a file that is being written, and of no other."""


def atomic_write(path: Path, data: bytes) -> None:
    """Write `data` to `path`, in place of the previous content.

    Guarantees:
        A reader, or a crash, sees the old file or the new one and nothing between.
        After the function has returned, the new file survives a power cut.
        Until then, the old one does.

    Raises:
        OSError: The file cannot be written. The old file is unchanged.
    """
    with _beside(path, data) as temporary:
        temporary.replace(path)
        make_durable(path.parent)


def atomic_create(path: Path, data: bytes) -> None:
    """Write `data` to a new file `path`, readable by its owner alone.

    Raises:
        FileExistsError: A file exists, which is unchanged.
        OSError: The file cannot be written.
    """
    with _beside(path, data) as temporary:
        # A link, unlike a move, never replaces.
        os.link(temporary, path)
        make_durable(path.parent)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield an empty file of mode 0600, which becomes the new file `path` after the body.

    If the body raises, there is no file in the end.

    Raises:
        FileExistsError: A file exists, which is unchanged.
        OSError: The file cannot be written.
    """
    with _beside(path, b"") as temporary:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        # A link, unlike a move, never replaces.
        os.link(temporary, path)
        make_durable(path.parent)


def check_path_writable(path: Path, *, is_folder: bool = False) -> None:
    """Raise the error of writing to `path`, before the work.

    The work is that whose result `path` will have.

    Args:
        path: A future file, whose folder must exist.
        is_folder: Whether `path` is a folder instead, which is created with its parents.

    Raises:
        OSError: The path cannot be written.
    """
    place = path.absolute() if is_folder else path.absolute().parent
    while is_folder and not place.exists():
        place = place.parent
    wrong = None
    if not place.exists():
        wrong = errno.ENOENT
    elif not place.is_dir():
        wrong = errno.ENOTDIR
    elif not os.access(place, os.W_OK | os.X_OK):
        wrong = errno.EACCES
    elif not is_folder and path.is_dir():
        wrong = errno.EISDIR
    if wrong is not None:
        raise OSError(wrong, os.strerror(wrong), str(path))


def require_room(folder: Path, size: int) -> None:
    """Raise the error of writing `size` bytes in `folder`, before the work.

    The function leaves no file. Another program may fill the disk a moment later. In that case, the
    code that writes the file must report the loss.

    Raises:
        OSError: Such a file cannot be written there.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, max(1, size))
        elif shutil.disk_usage(folder).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def make_durable(folder: Path) -> None:
    """Make the names of new files in `folder` survive a crash.

    Raises:
        OSError: The names cannot be made durable.
    """
    if sys.platform != "win32":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sweep(folder: Path) -> None:
    """Remove half-written files of killed processes in `folder`, and below.

    Guarantees:
        The function removes only files that `atomic_write` or `atomic_create` began.

    Raises:
        OSError: A file cannot be removed.
    """
    for path in [*folder.rglob(f".*{UNFINISHED}")]:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _beside(path: Path, data: bytes) -> Iterator[Path]:
    """Yield a durable temporary file next to `path`, of mode 0600.

    The file is removed in the end.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
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
