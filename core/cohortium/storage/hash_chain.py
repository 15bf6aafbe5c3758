"""Lines of JSON that each have the hash of the line before.

    {"number":1,"previous":"00…","entry":{…},"sha256":"5f…","signature":"9b…"}
    {"number":2,"previous":"5f…","entry":{…},"sha256":"c0…","signature":"41…"}

The hash of a line covers its number, the hash before and the entry. The signature covers the number
and the hash.

Guarantees:
    `links` finds every line that was altered, removed, repeated or moved, by any number of bytes,
    with one exception: the removal of the last lines.

    A file alone cannot show the removal of its last lines. A `Head` that was noted elsewhere can.

    A last line without its end is *torn*: a crash has interrupted its writing, so `append` did not
    return. A tail that no crash leaves is an error.

    Anybody who can write the file can compute hashes anew. Only signatures stop that. This module
    makes and stores them, and its caller verifies them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from typing import TYPE_CHECKING

import msgspec
from attrs import frozen

from cohortium.errors import RecordError, RefusalCode, RefusalError, RefutedError, RunError
from cohortium.storage.atomic import make_durable
from cohortium.storage.file_lock import exclusive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import BinaryIO

HASHED, SIGNED = b"cohortium chain line 1\x1f", b"cohortium chain head 1\x1f"
"""Beginnings of the text of a line's hash, and of its signature."""

MAX_LINE = 1 << 13
"""Most bytes of a line."""

_WHOLE = re.compile(rb'"signature":"[0-9a-f]*"\}')
"""End of a whole line. An entry cannot have it, because JSON escapes the quotes of a text."""


@frozen
class Head:
    """The last line of a chain, at some time.

    Attributes:
        number: Number of the line, from 1. 0 is the head of an empty chain.
        sha256: Hash of the line, 32 bytes.
    """

    number: int = 0
    sha256: bytes = bytes(32)

    @property
    def signed_text(self) -> bytes:
        """The text that a signature of the line covers."""
        return SIGNED + self.number.to_bytes(8, "big") + self.sha256


@frozen(kw_only=True)
class Link:
    """One line of a chain.

    Attributes:
        head: The head of the chain that ends with this line.
        entry: The entry, a JSON object.
        signature: Signature of the head, or empty.
    """

    head: Head
    entry: bytes
    signature: bytes


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    number: int
    previous: str
    entry: msgspec.Raw
    sha256: str
    signature: str


_START = b'{"number":'
"""First bytes of every line."""


def next_link(before: Head, entry: bytes, sign: Callable[[bytes], bytes] | None) -> Link:
    """Return the link after `before`.

    Args:
        before: The head so far.
        entry: A JSON object on one line.
        sign: Signs a text. None leaves the link unsigned.
    """
    body = _opening(before) + entry
    head = Head(before.number + 1, hashlib.sha256(HASHED + body).digest())
    return Link(head=head, entry=entry, signature=b"" if sign is None else sign(head.signed_text))


def to_line(before: Head, link: Link) -> bytes:
    """Return the line of `link`, which follows `before`."""
    return (
        _opening(before)
        + link.entry
        + f',"sha256":"{link.head.sha256.hex()}","signature":"{link.signature.hex()}"}}\n'.encode()
    )


def links(file: BinaryIO, before: Head | None = None) -> Iterator[Link]:
    """Yield the links of a file, from its current position.

    Args:
        file: The file.
        before: Head of the chain up to that position. None is that of an empty chain.

    Raises:
        RecordError: A line is altered, missing, repeated or moved. The message has its number.
    """
    head = before or Head()
    while line := file.readline(MAX_LINE + 1):
        if not line.endswith(b"\n"):
            if not _is_torn(line, head):
                raise _broken(head) if line.startswith(_START) or head.number else _no_chain()
            return
        if not head.number and not line.startswith(_START):
            raise _no_chain()
        link = _link(line, head)
        yield link
        head = link.head


def _opening(before: Head) -> bytes:
    return f'{{"number":{before.number + 1},"previous":"{before.sha256.hex()}","entry":'.encode()


def _link(line: bytes, before: Head) -> Link:
    try:
        found = msgspec.json.decode(line, type=_Line)
        signature = bytes.fromhex(found.signature)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise _broken(before) from error
    link = next_link(before, bytes(found.entry), lambda _: signature)
    # The whole line is compared, so that it has one form only.
    if to_line(before, link) != line:
        raise _broken(before)
    return link


def _is_torn(tail: bytes, before: Head) -> bool:
    """Return whether a crash can leave `tail` after the line `before`."""
    written = tail.rstrip(b"\0")
    opening = _opening(before)
    whole = _WHOLE.search(written)
    return (
        written[: len(opening)] == opening[: len(written)]
        and len(tail) <= MAX_LINE
        and (whole is None or whole.end() == len(written))
    )


def _no_chain() -> RefutedError:
    return RefutedError(
        "its first line is none of a trail: it is another file, or that line was altered; give the "
        "file that the site file names as its trail."
    )


def _broken(before: Head) -> RefutedError:
    return RefutedError(
        f"line {before.number + 1} is not what was written after line {before.number}: it was "
        "altered, moved or put there, or lines before it are missing."
    )


class HashChain:
    """A chain in a file of mode 0600, to which several processes of a machine append.

    Guarantees:
        `append` returns after `fsync`.
        A torn last line is removed before the next one is written.
        Nothing is appended to a chain that was altered, cut or replaced since it was opened.
    """

    def __init__(
        self,
        path: Path,
        sign: Callable[[bytes], bytes] | None = None,
        seen: Callable[[Link], None] = lambda _: None,
    ) -> None:
        """Open the chain at `path`, new or old, and check its hashes.

        Args:
            path: The file.
            sign: Signs each line. None leaves lines unsigned.
            seen: Called with each line that is there, in order, also with those that other
                processes append later.

        Raises:
            RunError: The file is no such chain, was altered, or cannot be used.
        """
        self._path, self._sign, self._seen = path, sign, seen
        self._head, self._end = Head(), 0
        try:
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise RunError(f"cannot open the trail {path}: {error.strerror}.") from error
        try:
            _require_own(self._file, path)
            with exclusive(self._file):
                self._catch_up()
            make_durable(path.parent)
        except OSError as error:
            self.close()
            raise RunError(f"cannot use the trail {path}: {error.strerror}.") from error
        except RecordError as error:
            self.close()
            raise RunError(f"the trail {path}: {error}") from error
        except BaseException:
            self.close()
            raise

    @property
    def head(self) -> Head:
        """The head, as far as this process has read the file."""
        return self._head

    def append(self, entry: bytes) -> Head:
        """Store `entry`, a JSON object on one line, and return the new head.

        Guarantees:
            Once it returns, the line survives a crash.

        Raises:
            RefusalError: It could not be stored. The action that it records must not happen.
        """
        try:
            with exclusive(self._file):
                self._catch_up()
                link = next_link(self._head, entry, self._sign)
                line = to_line(self._head, link)
                if len(line) > MAX_LINE:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))  # noqa: TRY301
                self._write(line)
                self._head, self._end = link.head, self._end + len(line)
                self._seen(link)
        except (OSError, RecordError) as error:
            raise _unwritable() from error
        return self._head

    def try_out(self) -> None:
        """Write and remove as many bytes as a line may have.

        A caller does so before it pays for the action that a line records.

        Raises:
            RefusalError: Lines cannot be stored.
        """
        try:
            with exclusive(self._file):
                self._catch_up()
                # Without an end of line: what a crash leaves of it is a torn last line.
                self._write(bytes(MAX_LINE))
                os.ftruncate(self._file, self._end)
        except (OSError, RecordError) as error:
            raise _unwritable() from error

    def close(self) -> None:
        """Close the file, after which nothing can be appended."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _catch_up(self) -> None:
        """Read the lines that others have appended, and remove a torn one.

        Raises:
            RecordError: The chain was altered, cut or replaced.
            OSError: The file cannot be used.
        """
        own, there = os.fstat(self._file), self._path.stat()
        if (own.st_ino, own.st_dev) != (there.st_ino, there.st_dev) or own.st_size < self._end:
            raise RecordError("the file was cut or replaced while it was in use.")
        if own.st_size == self._end:
            return
        with self._path.open("rb") as file:
            file.seek(self._end)
            for link in links(file, self._head):
                self._end += len(to_line(self._head, link))
                self._head = link.head
                self._seen(link)
        if own.st_size > self._end:
            os.ftruncate(self._file, self._end)
            os.fsync(self._file)

    def _write(self, data: bytes) -> None:
        """Write `data` after the lines, durably, or leave them as they were."""
        try:
            written = os.write(self._file, data)
            os.fsync(self._file)
            if written < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301
        except OSError:
            with contextlib.suppress(OSError):  # or before the next line
                os.ftruncate(self._file, self._end)
            raise


def _require_own(file: int, path: Path) -> None:
    """Refuse a file of another user, as the administrator may open it by mistake."""
    if hasattr(os, "geteuid") and os.fstat(file).st_uid != os.geteuid():
        raise RunError(f"the trail {path} is another user's; run the command as that user.")


def _unwritable() -> RefusalError:
    return RefusalError(RefusalCode.TRAIL, "the site's trail cannot be written.")
