"""A folder of files that appears whole, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cohortium.storage.atomic import atomic_write, make_durable
from cohortium.storage.file_lock import exclusive, try_exclusive

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

UNFINISHED_FOLDER: Final = ".cohortium-new"
"""Suffix of a folder that is being written, and of no other."""


def atomic_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a new folder of files that only its owner can read.

    Args:
        path: The folder. The folder that will hold it is created if necessary.
        files: Content of each file, by its path in the folder.

    Guarantees:
        A reader, or a crash, sees no folder or a whole one.
        After the function has returned, the folder survives a power cut.
        It has mode 0700, and its files have mode 0600.
        A process that was killed within the function leaves a half-written folder next to `path`.
        The next call for the same `path` removes it.  It removes no other folder, and none whose
        process may be alive.

    Raises:
        FileExistsError: Something is at `path`, which is unchanged.
        OSError: The folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_dead(path)
    made = tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED_FOLDER)
    temporary = Path(made)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        stack.enter_context(_marked_alive(temporary))
        for name, data in files.items():
            target = temporary / name
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            atomic_write(target, data)
        make_durable(temporary)
        if path.exists() or path.is_symlink():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        temporary.rename(path)
        make_durable(path.parent)


@contextlib.contextmanager
def _marked_alive(folder: Path) -> Iterator[None]:
    """Hold the lock of a new folder, before it has a file.

    The operating system releases the lock if the process ends.
    """
    if sys.platform == "win32":
        yield
        return
    file = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # a network's file system may have no such lock
                stack.enter_context(exclusive(file))
            yield
    finally:
        os.close(file)


def _remove_dead(path: Path) -> None:
    """Remove the folders that dead processes have half written for `path`, as far as possible."""
    name = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}{re.escape(UNFINISHED_FOLDER)}")
    for found in [*path.parent.iterdir()]:
        if name.fullmatch(found.name) and _is_dead(found):
            shutil.rmtree(found, ignore_errors=True)


def _is_dead(folder: Path) -> bool:
    """Return whether the process that made `folder` is certainly dead.

    A living one holds the lock before it writes a file.  An empty folder may be a new one.
    """
    if sys.platform == "win32":
        return False
    try:
        file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        if os.fstat(file).st_uid != os.geteuid() or not try_exclusive(file):
            return False
        return bool(os.listdir(file))  # noqa: PTH208 - of the very folder that is locked
    finally:
        os.close(file)
