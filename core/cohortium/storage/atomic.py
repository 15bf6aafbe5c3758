"""Files that a crash cannot tear: made beside their place, made durable, then moved there."""

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
"""How the name of a file ends that is being written, and of no file of anybody else's."""


def atomic_write(path: Path, data: bytes) -> None:
    """Put `data` at `path`, in place of what was there.

    Guarantees:
        A reader, or a crash, sees the old file or the new one and nothing between.  Once it has
        returned the new one outlives a power cut; until then the old one does.

    Raises:
        OSError: It cannot be written; the old file stands.
    """
    with _beside(path, data) as temporary:
        temporary.replace(path)
        make_durable(path.parent)


def atomic_create(path: Path, data: bytes) -> None:
    """Put `data` at `path`, where nothing may be yet; only the owner can read it.

    Raises:
        FileExistsError: Something is there; it stands.
        OSError: It cannot be written.
    """
    with _beside(path, data) as temporary:
        # A link, unlike a move, never replaces.
        os.link(temporary, path)
        make_durable(path.parent)


def check_path_writable(path: Path, *, is_folder: bool = False) -> None:
    """Raise what writing to `path` would, before the work whose outcome is to lie there.

    Args:
        path: A file to be; its folder has to be there.
        is_folder: It is a folder instead, and is made together with those above it.

    Raises:
        OSError: Nothing can be written there.
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
    """Raise what a file of `size` bytes in `folder` would, before the work whose outcome it holds.

    Nothing is left of it.  Somebody else may fill the disk a moment later; what is lost then is
    for whoever writes to say.

    Raises:
        OSError: Such a file cannot be written there.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, max(1, size))
        elif shutil.disk_usage(folder).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def make_durable(folder: Path) -> None:
    """See to it that the names of new files in `folder` outlive a crash.

    Raises:
        OSError: It cannot be.
    """
    if sys.platform != "win32":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sweep(folder: Path) -> None:
    """Remove what processes that were killed have left half written in `folder`, and below.

    Guarantees:
        Nothing goes but files that `atomic_write` or `atomic_create` began.

    Raises:
        OSError: It cannot be removed.
    """
    for path in [*folder.rglob(f".*{UNFINISHED}")]:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _beside(path: Path, data: bytes) -> Iterator[Path]:
    """A durable temporary file beside `path`, of mode 0600, gone in the end."""
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
