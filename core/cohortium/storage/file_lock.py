"""A lock between processes of one machine, on an open file."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


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
