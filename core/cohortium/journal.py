"""What a site must not forget over a restart: entries that are durable before it answers."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import sys
from typing import TYPE_CHECKING, Protocol

from attrs import define, field

from cohortium.errors import RefusalError, RunError
from cohortium.files import make_durable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_CHECK_BYTES = 8


class Journal(Protocol):
    """Entries in the order in which they were made; none is ever changed or taken back.

    A journal belongs to one role at one site, and may serve many runs.
    """

    def append(self, entry: bytes) -> None:
        """Keep `entry`.

        Guarantees:
            Once it returns, every later reader of the journal finds the entry.

        Raises:
            RefusalError: It could not be kept; what it stands for must not be done.
        """
        ...

    def entries(self) -> Sequence[bytes]:
        """Every entry."""
        ...


@define(eq=False)
class MemoryJournal:
    """A journal that ends with its process: for simulations."""

    _entries: list[bytes] = field(factory=list, repr=False)

    def append(self, entry: bytes) -> None:
        """Keep `entry` for as long as the process lives."""
        self._entries.append(entry)

    def entries(self) -> Sequence[bytes]:
        """Every entry."""
        return tuple(self._entries)


class FileJournal:
    """A journal in a file of mode 0600: one checked line an entry.

    Guarantees:
        `append` returns after `fsync`.  A last line that a crash has torn was never relied on:
        its `append` did not return; opening the journal takes it off.  Damage anywhere else is
        an error, never a shorter journal.
        On POSIX one process at a time has the journal open.
        It cannot tell an older copy of the file from the file: do not restore one from a backup.
    """

    def __init__(self, path: Path) -> None:
        """Open the journal at `path`, new or old.

        Raises:
            RunError: It is damaged, in use, or cannot be opened.
        """
        self._path = path
        self._entries: list[bytes] = []
        try:
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise RunError(f"cannot open the journal {path}: {error.strerror}.") from error
        try:
            self._lock()
            self._load()
        except BaseException:
            self.close()
            raise

    def append(self, entry: bytes) -> None:
        """Keep `entry`; see `Journal.append`."""
        line = _line(entry)
        try:
            written = os.write(self._file, line)
            os.fsync(self._file)
            if written < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301
        except OSError as error:
            # A torn line must stay the last one.
            self.close()
            raise RefusalError("journal", "the site's journal cannot be written.") from error
        self._entries.append(entry)

    def entries(self) -> Sequence[bytes]:
        """Every entry."""
        return tuple(self._entries)

    def close(self) -> None:
        """Let go of the file; nothing can be appended after."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _lock(self) -> None:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RunError(f"the journal {self._path} is in use already.") from error

    def _load(self) -> None:
        whole = self._path.read_bytes()
        lines = whole.splitlines(keepends=True)
        for number, line in enumerate(lines):
            entry = _entry(line)
            if entry is not None:
                self._entries.append(entry)
            elif number == len(lines) - 1:
                os.ftruncate(self._file, len(whole) - len(line))
            else:
                raise RunError(f"the journal {self._path} is damaged in line {number + 1}.")
        os.fsync(self._file)
        make_durable(self._path.parent)


def _line(entry: bytes) -> bytes:
    return base64.b64encode(hashlib.sha256(entry).digest()[:_CHECK_BYTES] + entry) + b"\n"


def _entry(line: bytes) -> bytes | None:
    """The entry in a whole line; None if the line is torn or damaged."""
    try:
        data = base64.b64decode(line.removesuffix(b"\n"), validate=True)
    except ValueError:
        return None
    entry = data[_CHECK_BYTES:]
    return entry if _line(entry) == line else None
