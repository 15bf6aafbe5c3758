"""A lock between processes of one machine, on a file."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def exclusive(file: int) -> Iterator[None]:
    """Hold the lock of an open file, after waiting for other holders.

    The operating system releases it if the process ends. Windows has no such lock.

    Args:
        file: Descriptor of the file.

    Raises:
        OSError: The file cannot be locked.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of the file `path`, for the time of a change to the files next to it.

    A file that each change replaces cannot be the lock itself. So the lock is a file of its own,
    which is empty. It is created if it is missing, and it stays.

    Args:
        path: The lock's file.

    Raises:
        OSError: The file cannot be created or locked.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        with exclusive(file):
            yield
    finally:
        os.close(file)


def try_exclusive(file: int) -> bool:
    """Take the lock of an open file without waiting, until the file is closed.

    Args:
        file: Descriptor of the file.

    Returns:
        Whether it is taken.  It is not if another process holds it, or where files have no locks.
    """
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
