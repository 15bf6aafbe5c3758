"""The channel between a hospital's site process and whatever brings it messages on this machine.

A Unix socket.  A call is a frame of two parts, the common part and the site's own, and is answered
by a frame of one; a connection carries one call after another.

    frame   mark, for each part its length in 8 bytes (big-endian), then the parts

Whoever brings the messages is believed no more than the coordinator they come from.  What the
channel sees to is that nobody *else* on the machine takes part.

Guarantees:
    The operating system says which user is at the other end (SO_PEERCRED, LOCAL_PEERCRED); the
    site hears none but its own user and the one that its file names, and the caller talks to
    nobody but the user that it expects.  The socket's mode lets other users not even connect.
    A part is at most `LARGEST` bytes, and memory is set aside as bytes arrive, not as they are
    announced.  A frame that breaks the form, or stalls for `PATIENCE` seconds, costs its own
    connection and nothing else.
    At most `MOST_CALLERS` connections are open; calls are answered one at a time.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING

from attrs import define, field

from cohortium.errors import MessageError, RunError, StudyError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

CALL = b"CHT-call"
REPLY = b"CHT-rply"
"""What a frame begins with; a version would have others."""

LARGEST = 1 << 32
"""Bytes of a part."""

PATIENCE = 30.0
"""Seconds within which more of a begun frame must come."""

MOST_CALLERS = 16

_PIECE = 1 << 20

_BACKLOG = 128


def ask(
    path: Path, common: bytes, own: bytes, *, user: int | None = None, patience: float = 0.0
) -> bytes:
    """The reply of the site process that listens at `path`.

    Args:
        path: Its socket.
        common: The part that all sites are sent.
        own: The part for this one alone.
        user: The number of the user that it runs as; None is this process's own.
        patience: Seconds for which a site that is not there, or goes away in the middle, is tried
            again with the same bytes: a restart gives them the same answer, or refuses.

    Raises:
        RunError: It is not there, or is not who it should be.
        MessageError: What it says is no frame.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            return _ask(path, common, own, os.getuid() if user is None else user)
        except OSError as error:
            if time.monotonic() >= deadline:
                raise RunError(
                    f"the site process does not answer: {error.strerror or error}."
                ) from error
            time.sleep(min(0.5, patience))


def _ask(path: Path, common: bytes, own: bytes, user: int) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(str(path))
        if peer(connection) != user:
            raise RunError("the site's socket belongs to another user; nothing was sent to it.")
        _send(connection, CALL, common, own)
        # The site may train for as long as it takes; if it ends, the connection does.
        connection.settimeout(None)
        (reply,) = _receive(connection, REPLY, parts=1)
        return reply


@define(eq=False)
class Door:
    """A site process's end of the channel.

    Attributes:
        path: Of the socket.
        answer: Gives the reply to a common part and the site's own.  Never called twice at once.
        users: Numbers of the users that are heard.
        tell: Told of callers that were turned away.
    """

    path: Path
    answer: Callable[[bytes, bytes], bytes]
    users: Collection[int]
    tell: Callable[[str], None] = lambda _sentence: None
    _turn: threading.Lock = field(factory=threading.Lock, init=False)
    _places: threading.Semaphore = field(
        factory=lambda: threading.Semaphore(MOST_CALLERS), init=False
    )

    @contextlib.contextmanager
    def open(self) -> Iterator[socket.socket]:
        """Listen; the socket's file is gone in the end.

        Raises:
            StudyError: The socket cannot be made there, or a process listens at it already.
        """
        with _bound(self.path, shared=len(set(self.users)) > 1) as listener:
            yield listener

    def serve(self, listener: socket.socket) -> None:
        """Answer callers until `listener` is shut down."""
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if not self._places.acquire(blocking=False):
                connection.close()
                self.tell("too many callers at once; one was turned away.")
                continue
            threading.Thread(target=self._attend, args=(connection,), daemon=True).start()

    def _attend(self, connection: socket.socket) -> None:
        try:
            with connection:
                connection.settimeout(PATIENCE)
                user = peer(connection)
                if user not in self.users:
                    self.tell(f"user {user} of this machine tried to speak to the site.")
                    return
                while (parts := self._next(connection)) is not None:
                    with self._turn:
                        reply = self.answer(*parts)
                    _send(connection, REPLY, reply)
        except (OSError, MessageError) as error:
            self.tell(f"a caller was cut off: {error}")
        finally:
            self._places.release()

    def _next(self, connection: socket.socket) -> tuple[bytes, bytes] | None:
        """The next call's parts; None where the caller has closed after a whole one."""
        first = connection.recv(1, socket.MSG_PEEK)
        if not first:
            return None
        common, own = _receive(connection, CALL, parts=2)
        return common, own


def peer(connection: socket.socket) -> int:
    """The number of the user at the other end, as the operating system has it."""
    if sys.platform == "linux":
        size = struct.calcsize("3i")
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        return int(struct.unpack("3i", credentials)[1])
    # BSD and macOS: struct xucred { u_int version; uid_t uid; … }.
    credentials = connection.getsockopt(0, 1, 76)
    return int(struct.unpack_from("2I", credentials)[1])


@contextlib.contextmanager
def _bound(path: Path, *, shared: bool) -> Iterator[socket.socket]:
    if not hasattr(socket, "AF_UNIX"):
        raise StudyError("a site process needs Unix sockets, which this system has not.")
    _clear(path)
    with socket.socket(socket.AF_UNIX) as listener:
        # The file must never be there with a wider mode than it is meant to have.
        before = os.umask(0o111 if shared else 0o177)
        try:
            listener.bind(str(path))
        except OSError as error:
            raise StudyError(f"cannot listen at {path}: {error.strerror or error}.") from error
        finally:
            os.umask(before)
        listener.listen(_BACKLOG)
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


def _clear(path: Path) -> None:
    """Take away a socket that a process has left behind.

    Raises:
        StudyError: A process listens there, or it is no socket.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise StudyError(f"cannot listen at {path}: {error.strerror}.") from error
    if not stat.S_ISSOCK(mode):
        raise StudyError(f"{path} is there already and is no socket; name another.")
    with socket.socket(socket.AF_UNIX) as trial:
        trial.settimeout(PATIENCE)
        if trial.connect_ex(str(path)) == 0:
            raise StudyError(f"a process listens at {path} already.")
    path.unlink(missing_ok=True)


def _send(connection: socket.socket, mark: bytes, *parts: bytes) -> None:
    lengths = struct.pack(f">{len(parts)}Q", *map(len, parts))
    connection.sendall(mark + lengths)
    for part in parts:
        # Piecewise: the time-out is for a piece, not for all of a large one.
        view = memoryview(part)
        for start in range(0, len(view), _PIECE):
            connection.sendall(view[start : start + _PIECE])


def _receive(connection: socket.socket, mark: bytes, *, parts: int) -> list[bytes]:
    head = _exactly(connection, len(mark) + 8 * parts)
    if head[: len(mark)] != mark:
        raise MessageError("what came over the channel does not begin as a frame does.")
    lengths = struct.unpack(f">{parts}Q", head[len(mark) :])
    if max(lengths) > LARGEST:
        raise MessageError(f"a part of a frame may take {LARGEST} bytes, not {max(lengths)}.")
    return [_exactly(connection, length) for length in lengths]


def _exactly(connection: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        piece = connection.recv(min(_PIECE, length - len(data)))
        if not piece:
            raise ConnectionError("the connection ended within a frame")
        data += piece
    return bytes(data)
