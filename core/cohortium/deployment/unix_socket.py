"""Channel to a site process from another program on this machine.

It is a Unix socket. A call is a frame of two parts, the common part and the site's own. The reply
is a frame of one part (`socket_frames`). A connection carries one call.

The program that brings the messages is trusted no more than the coordinator who sent them. The
channel ensures that nobody *else* on the machine takes part.

Guarantees:
    The operating system states which user is at the other end (SO_PEERCRED, LOCAL_PEERCRED). The
    site answers only its own user and the user that its file names. The caller sends nothing to any
    user but the one that it expects.

    The socket's mode keeps users outside the caller's group from connecting (`socket_access`). A
    member of that group who is not the caller is rejected. This happens before a slot or a thread
    is spent on the connection.

    A part is at most `MAX_PART_BYTES` bytes. Memory is allocated as bytes arrive, not as they are
    announced.

    A call must arrive whole within `IO_TIMEOUT` seconds, plus the time of its bytes at
    `MIN_BYTES_PER_SECOND`. A reply must be taken within the same limit. A frame that is malformed
    or too slow costs its own connection and nothing else.

    Each user has at most `MAX_CONNECTIONS` open connections. Those whose calls are incomplete give
    way to new ones. Calls are answered one at a time.

    The log gets a bounded number of sentences a minute about callers (`log_throttle`).
"""

from __future__ import annotations

import contextlib
import errno
import logging
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

_LOG = logging.getLogger(__name__)

MAX_CONNECTIONS = 16
"""Most connections of a user."""

_PAUSE = 0.1
"""Seconds to wait before the next call, after a lack of resources."""


def call_site(
    path: Path, broadcast: bytes, own: bytes, *, user: int | None = None, patience: float = 0.0
) -> bytes:
    """Return the reply of the site process that listens at `path`.

    Args:
        path: Its socket.
        broadcast: The part that all sites receive.
        own: The part for this site alone.
        user: Number of the user as whom the site process runs. None is this process's own user.
        patience: Seconds for which the call is repeated with the same bytes, if the site is absent
            or disconnects. After a restart, the site gives the same answer or refuses.

    Raises:
        RunError: The site process is absent, or runs as another user.
        MessageError: The reply is no frame.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            return _call_once(path, broadcast, own, os.getuid() if user is None else user)
        except OSError as error:
            # An error without a number is Python's own: the path is longer than an address may be.
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
        # The site may train for any time. If it ends, the connection ends too.
        connection.settimeout(None)
        connection.recv(1, socket.MSG_PEEK)
        (reply,) = receive(DeadlineSocket(connection, time.monotonic), REPLY, parts=1)
        return reply


@define(eq=False)
class _ConnectionSlots:
    """Open connections, limited for each user.

    A caller with an incomplete call gives way to the same user's next one. The oldest such caller
    gives way first. So slow callers keep nobody out.
    """

    _open: dict[int, dict[socket.socket, bool]] = field(factory=dict, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def take(self, user: int, connection: socket.socket) -> bool:
        """Register a connection, and return whether there was a slot."""
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
        """Note that a call is complete.

        Raises:
            ConnectionError: Another connection took its slot a moment ago.
        """
        with self._lock:
            if connection not in self._open[user]:
                raise ConnectionError("its place was given to another caller")
            self._open[user][connection] = True

    def leave(self, user: int, connection: socket.socket) -> None:
        """Free a slot."""
        with self._lock:
            self._open[user].pop(connection, None)


@define(eq=False)
class SiteSocketServer:
    """A site process's end of the channel.

    Attributes:
        path: Of the socket.
        answer: Returns the reply to a common part and the site's own. Calls never overlap.
        users: Numbers of the users whose calls are answered.
        group: Number of the group whose members may connect. None admits the owner alone.
        clock: Returns seconds since any fixed moment.
    """

    path: Path
    answer: Callable[[bytes, bytes], bytes]
    users: Collection[int]
    group: int | None = None
    clock: Callable[[], float] = time.monotonic
    _turn: threading.Lock = field(factory=threading.Lock, init=False)
    _places: _ConnectionSlots = field(factory=_ConnectionSlots, init=False)

    @contextlib.contextmanager
    def open(self) -> Iterator[socket.socket]:
        """Yield a listening socket, and remove the socket's file afterwards.

        Raises:
            RequestError: The socket cannot be created there, or a process listens at it already.
        """
        with listening_socket(self.path, self.group) as listener:
            yield listener

    def serve(self, listener: socket.socket) -> None:
        """Answer callers until `listener` is shut down."""
        log = Throttle(_LOG, "callers turned away", clock=self.clock)
        try:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError as error:
                    if error.errno in (errno.EINVAL, errno.EBADF):
                        return
                    log(f"a call could not be taken: {error.strerror}.")
                    time.sleep(_PAUSE)
                    continue
                self._let_in(connection, log)
        finally:
            log.close()

    def _let_in(self, connection: socket.socket, log: Throttle) -> None:
        """Start a thread for an allowed caller, if there is a slot."""
        try:
            # Systems but Linux do not state the user of a caller that has left already.
            user = peer_uid(connection)
        except OSError as error:
            log(f"a caller was cut off: {error}")
            connection.close()
            return
        if user not in self.users:
            log(f"user {user} of this machine tried to speak to the site.")
            connection.close()
        elif not self._places.take(user, connection):
            log("too many callers at once; one was turned away.")
            connection.close()
        else:
            self._start(user, connection, log)

    def _start(self, user: int, connection: socket.socket, log: Throttle) -> None:
        thread = threading.Thread(target=self._attend, args=(user, connection, log), daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the system has no further thread at the moment
            log(f"a caller was cut off: {error}")
            self._places.leave(user, connection)
            connection.close()

    def _attend(self, user: int, connection: socket.socket, log: Throttle) -> None:
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
            log(f"a caller was cut off: {error}")
        finally:
            self._places.leave(user, connection)

    def _next(self, connection: socket.socket) -> tuple[bytes, bytes] | None:
        """Return the call's parts, or None if there is no call.

        There is none if the caller has closed the connection.
        """
        line = DeadlineSocket(connection, self.clock)
        if not line.peek():
            return None
        broadcast, own = receive(line, CALL, parts=2)
        return broadcast, own


def peer_uid(connection: socket.socket) -> int:
    """Return the number of the user at the other end.

    The operating system states it.
    """
    if sys.platform == "linux":
        size = struct.calcsize("3i")
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        return int(struct.unpack("3i", credentials)[1])
    # BSD and macOS: struct xucred { u_int version; uid_t uid; … }.
    credentials = connection.getsockopt(0, 1, 76)
    return int(struct.unpack_from("2I", credentials)[1])
