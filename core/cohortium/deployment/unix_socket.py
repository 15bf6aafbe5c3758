"""The channel between a hospital's site process and whatever brings it messages on this machine.

A Unix socket.  A call is a frame of two parts, the common part and the site's own, and is answered
by a frame of one (`frames`).  A connection carries one call.

Whoever brings the messages is believed no more than the coordinator they come from.  What the
channel sees to is that nobody *else* on the machine takes part.

Guarantees:
    The operating system says which user is at the other end (SO_PEERCRED, LOCAL_PEERCRED); the
    site hears none but its own user and the one that its file names, and the caller talks to
    nobody but the user that it expects.  The socket's mode lets users outside the caller's group
    not even connect (`listening`); a member of that group who is not the caller is turned away
    before a place or a thread is spent on it.
    A part is at most `LARGEST` bytes, and memory is set aside as bytes arrive, not as they are
    announced.  A call has to come whole within `IO_TIMEOUT` seconds, and the time that its bytes
    take at `SLOWEST`; a reply has to be taken likewise.  A frame that breaks the form, or comes too
    slowly, costs its own connection and nothing else.
    Each user has at most `MAX_CONNECTIONS` connections open, of which those that are not whole give
    way to new ones; calls are answered one at a time.
    The log has a bounded number of sentences a minute about callers (`throttling`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING

from attrs import define, field

from cohortium.deployment.log_throttle import Throttle
from cohortium.deployment.socket_access import listening_socket
from cohortium.deployment.socket_frames import (
    CALL,
    IO_TIMEOUT,
    REPLY,
    DeadlineSocket,
    receive,
    send,
)
from cohortium.errors import MessageError, RunError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

MAX_CONNECTIONS = 16
"""Connections of a user."""

_PAUSE = 0.1
"""Seconds after which callers are heard again where the system had no room for one."""


def call_site(
    path: Path, broadcast: bytes, own: bytes, *, user: int | None = None, patience: float = 0.0
) -> bytes:
    """The reply of the site process that listens at `path`.

    Args:
        path: Its socket.
        broadcast: The part that all sites are sent.
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
            return _call_once(path, broadcast, own, os.getuid() if user is None else user)
        except OSError as error:
            # Without a number it is Python's own: the path is longer than an address may be.
            if error.errno is None and not isinstance(error, ConnectionError | TimeoutError):
                raise RunError(f"the site's socket cannot be at {path}: {error}.") from error
            if time.monotonic() >= deadline:
                raise RunError(
                    f"the site process does not answer: {error.strerror or error}{_hint(error)}."
                ) from error
            time.sleep(min(0.5, patience))


def _hint(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "; the site's file names the one user that may call (caller)"
    return ""


def _call_once(path: Path, broadcast: bytes, own: bytes, user: int) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(IO_TIMEOUT)
        connection.connect(str(path))
        if peer_uid(connection) != user:
            raise RunError("the site's socket belongs to another user; nothing was sent to it.")
        send(DeadlineSocket(connection, time.monotonic), CALL, broadcast, own)
        # The site may train for as long as it takes; if it ends, the connection does.
        connection.settimeout(None)
        connection.recv(1, socket.MSG_PEEK)
        (reply,) = receive(DeadlineSocket(connection, time.monotonic), REPLY, parts=1)
        return reply


@define(eq=False)
class _ConnectionSlots:
    """The connections that are open: for each user so many.

    A caller that has not said all of its call gives way to the next of the same user, the one that
    came first before the others: whoever speaks slowly keeps nobody out.
    """

    _open: dict[int, dict[socket.socket, bool]] = field(factory=dict, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def take(self, user: int, connection: socket.socket) -> bool:
        """Whether there is a place."""
        with self._lock:
            theirs = self._open.setdefault(user, {})
            if len(theirs) >= MAX_CONNECTIONS:
                slowest = next((c for c, is_whole in theirs.items() if not is_whole), None)
                if slowest is None:
                    return False
                del theirs[slowest]
                with contextlib.suppress(OSError):
                    slowest.shutdown(socket.SHUT_RDWR)
            theirs[connection] = False
            return True

    def keep(self, user: int, connection: socket.socket) -> None:
        """Note that all of a call has come.

        Raises:
            ConnectionError: Its place was given to another a moment ago.
        """
        with self._lock:
            if connection not in self._open[user]:
                raise ConnectionError("its place was given to another caller")
            self._open[user][connection] = True

    def leave(self, user: int, connection: socket.socket) -> None:
        """Free a place."""
        with self._lock:
            self._open[user].pop(connection, None)


@define(eq=False)
class SiteSocketServer:
    """A site process's end of the channel.

    Attributes:
        path: Of the socket.
        answer: Gives the reply to a common part and the site's own.  Never called twice at once.
        users: Numbers of the users that are heard.
        group: Number of the group whose members may connect; None lets in the owner alone.
        tell: Told of callers that were turned away.
        clock: Seconds, from anywhere.
    """

    path: Path
    answer: Callable[[bytes, bytes], bytes]
    users: Collection[int]
    group: int | None = None
    tell: Callable[[str], None] = lambda _sentence: None
    clock: Callable[[], float] = time.monotonic
    _turn: threading.Lock = field(factory=threading.Lock, init=False)
    _places: _ConnectionSlots = field(factory=_ConnectionSlots, init=False)

    @contextlib.contextmanager
    def open(self) -> Iterator[socket.socket]:
        """Listen; the socket's file is gone in the end.

        Raises:
            StudyError: The socket cannot be made there, or a process listens at it already.
        """
        with listening_socket(self.path, self.group) as listener:
            yield listener

    def serve(self, listener: socket.socket) -> None:
        """Answer callers until `listener` is shut down."""
        told = Throttle(self.tell, "callers turned away", clock=self.clock)
        try:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError as error:
                    if error.errno in (errno.EINVAL, errno.EBADF):
                        return
                    told(f"a call could not be taken: {error.strerror}.")
                    time.sleep(_PAUSE)
                    continue
                self._let_in(connection, told)
        finally:
            told.close()

    def _let_in(self, connection: socket.socket, tell: Callable[[str], None]) -> None:
        """Give a caller a thread of its own, if it is one that may call and there is a place."""
        user = peer_uid(connection)
        if user not in self.users:
            tell(f"user {user} of this machine tried to speak to the site.")
            connection.close()
        elif not self._places.take(user, connection):
            tell("too many callers at once; one was turned away.")
            connection.close()
        else:
            threading.Thread(
                target=self._attend, args=(user, connection, tell), daemon=True
            ).start()

    def _attend(self, user: int, connection: socket.socket, tell: Callable[[str], None]) -> None:
        try:
            with connection:
                parts = self._next(connection)
                if parts is None:
                    return
                self._places.keep(user, connection)
                with self._turn:
                    reply = self.answer(*parts)
                send(DeadlineSocket(connection, self.clock), REPLY, reply)
        except (OSError, MessageError) as error:
            tell(f"a caller was cut off: {error}")
        finally:
            self._places.leave(user, connection)

    def _next(self, connection: socket.socket) -> tuple[bytes, bytes] | None:
        """The call's parts; None where the caller has closed without one."""
        line = DeadlineSocket(connection, self.clock)
        if not line.peek():
            return None
        broadcast, own = receive(line, CALL, parts=2)
        return broadcast, own


def peer_uid(connection: socket.socket) -> int:
    """The number of the user at the other end, as the operating system has it."""
    if sys.platform == "linux":
        size = struct.calcsize("3i")
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        return int(struct.unpack("3i", credentials)[1])
    # BSD and macOS: struct xucred { u_int version; uid_t uid; … }.
    credentials = connection.getsockopt(0, 1, 76)
    return int(struct.unpack_from("2I", credentials)[1])
