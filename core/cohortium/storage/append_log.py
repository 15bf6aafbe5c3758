"""Journals of a site: entries that are durable before the site replies."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import os
import sys
from typing import TYPE_CHECKING, Protocol

from attrs import define, field

from cohortium.errors import RefusalCode, RefusalError, RunError
from cohortium.storage.atomic import make_durable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

HEADER = b"cohortium journal 1\n"
"""First line of a journal's file.

So no other file is taken for a journal, and changed.
"""

_CHECK_BYTES = 8

_ROOM = 1 << 12
"""Bytes of a trial write.

They are more than any entry takes, and a block of most file systems.
"""


class Journal(Protocol):
    """Entries in the order of writing, none of which changes or disappears.

    A journal belongs to one role at one site, and may serve many runs.
    """

    def append(self, entry: bytes) -> None:
        """Store `entry`.

        Guarantees:
            Once it returns, every later reader of the journal finds the entry.

        Raises:
            RefusalError: The entry could not be stored. The action that it records must not happen.
        """
        ...

    def entries(self) -> Sequence[bytes]:
        """Return every entry."""
        ...

    def try_out(self) -> None:
        """Check that entries can be stored now.

        A caller does so before it pays for the action that an entry records.

        Raises:
            RefusalError: Entries cannot be stored.
        """
        ...


@define(eq=False)
class MemoryJournal:
    """A journal that ends with its process, for simulations."""

    _entries: list[bytes] = field(factory=list, repr=False)

    def append(self, entry: bytes) -> None:
        """Store `entry` as long as the process lives."""
        self._entries.append(entry)

    def entries(self) -> Sequence[bytes]:
        """Return every entry."""
        return tuple(self._entries)

    def try_out(self) -> None:
        """Accept, as memory has room."""


class FileJournal:
    """A journal in a file of mode 0600.

    The file has a header, and one checked line per entry.

    Guarantees:
        `append` returns after `fsync`.
        A last line that a crash or a full disk has torn was never relied on: its `append` did not
        return.
        The journal removes such a line before the next entry, or when it is opened.
        Damage anywhere else is an error, never a shorter journal.
        A file that is no journal is refused, and stays unchanged.
        On POSIX, only one process at a time has the journal open.
        It cannot distinguish an older copy of the file from the file: do not restore one from a
        backup.
    """

    def __init__(self, path: Path) -> None:
        """Open the journal at `path`, new or old.

        Raises:
            RunError: The journal is damaged, in use, or cannot be opened.
        """
        self._path = path
        self._entries: list[bytes] = []
        # End of the entries. Data after it may exist that no caller relied on.
        self._end, self._is_torn = 0, False
        try:
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise RunError(f"cannot open the journal {path}: {error.strerror}.") from error
        try:
            self._lock()
            self._load()
        except OSError as error:
            self.close()
            raise RunError(f"cannot open the journal {path}: {error.strerror}.") from error
        except BaseException:
            self.close()
            raise

    def append(self, entry: bytes) -> None:
        """Store `entry` (see `Journal.append`).

        After a failure, a later entry may be stored again.
        """
        line = _line(entry)
        self._write(line)
        self._end += len(line)
        self._is_torn = False
        self._entries.append(entry)

    def try_out(self) -> None:
        """Write and remove as many bytes as an entry may take.

        See `Journal.try_out`.
        """
        # Without an end of line: any part of it that a crash leaves is a torn last line.
        self._write(bytes(_ROOM))
        self._mend()

    def _write(self, data: bytes) -> None:
        """Write `data` after the entries, durably.

        The data count as torn until the caller sets otherwise.
        """
        self._mend()
        self._is_torn = True
        try:
            written = os.write(self._file, data)
            os.fsync(self._file)
            if written < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301
        except OSError as error:
            with contextlib.suppress(RefusalError):  # or before the next entry
                self._mend()
            raise _unwritable() from error

    def _mend(self) -> None:
        """Remove the data after the entries."""
        if not self._is_torn:
            return
        try:
            os.ftruncate(self._file, self._end)
            os.fsync(self._file)
        except OSError as error:
            raise _unwritable() from error
        self._is_torn = False

    def entries(self) -> Sequence[bytes]:
        """Return every entry."""
        return tuple(self._entries)

    def close(self) -> None:
        """Close the file, after which nothing can be appended."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _lock(self) -> None:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RunError(
                    f"the journal {self._path} is in use already; stop the process that uses "
                    "it, or wait for its end."
                ) from error

    def _load(self) -> None:
        whole = self._path.read_bytes()
        is_blank = len(whole) <= len(HEADER) and not whole.strip(b"\0")
        if is_blank or HEADER.startswith(whole):
            # The file is new, or a crash truncated its beginning.
            os.ftruncate(self._file, 0)
            os.write(self._file, HEADER)
            whole = HEADER
        # A journal from before the header was introduced begins with an entry.
        head, _, _ = whole.partition(b"\n")
        if head + b"\n" != HEADER and _entry(head + b"\n") is None:
            raise RunError(f"{self._path} is no journal; name another file.")
        lines = whole.removeprefix(HEADER).splitlines(keepends=True)
        first = 2 if whole.startswith(HEADER) else 1
        self._end = len(whole)
        for number, line in enumerate(lines):
            entry = _entry(line)
            if entry is not None:
                self._entries.append(entry)
            elif number == len(lines) - 1:
                self._end, self._is_torn = len(whole) - len(line), True
            else:
                raise RunError(f"the journal {self._path} is damaged in line {number + first}.")
        try:
            self._mend()
        except RefusalError as error:
            raise RunError(f"the journal {self._path} cannot be written.") from error
        os.fsync(self._file)
        make_durable(self._path.parent)


def _unwritable() -> RefusalError:
    return RefusalError(RefusalCode.JOURNAL, "the site's journal cannot be written.")


def _line(entry: bytes) -> bytes:
    return base64.b64encode(hashlib.sha256(entry).digest()[:_CHECK_BYTES] + entry) + b"\n"


def _entry(line: bytes) -> bytes | None:
    """Return the entry in a whole line, or None for damaged ones."""
    try:
        data = base64.b64decode(line.removesuffix(b"\n"), validate=True)
    except ValueError:
        return None
    entry = data[_CHECK_BYTES:]
    return entry if _line(entry) == line else None
