"""The channel to a site process: strict frames, bounded, and for the right users alone."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cohortium.deployment import socket_frames, unix_socket
from cohortium.deployment.log_throttle import MAX_SENTENCES
from cohortium.deployment.socket_frames import CALL, MAX_PART_BYTES, REPLY
from cohortium.deployment.unix_socket import SiteSocketServer, call_site, peer_uid
from cohortium.errors import MessageError, RequestError, RunError


@define(eq=False)
class Echo:
    """A door behind which everything is said back, with its lengths."""

    path: Path
    users: set[int] = field(factory=lambda: {os.getuid()})
    group: int | None = None
    clock: Callable[[], float] = time.monotonic
    heard: int = 0

    def answer(self, broadcast: bytes, own: bytes) -> bytes:
        self.heard += 1
        return struct.pack(">2Q", len(broadcast), len(own)) + broadcast + own


def said(broadcast: bytes, own: bytes) -> bytes:
    return struct.pack(">2Q", len(broadcast), len(own)) + broadcast + own


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[Echo]:
    yield from served(Echo(tmp_path / "s"))


def served(echo: Echo) -> Iterator[Echo]:
    door = SiteSocketServer(
        echo.path,
        echo.answer,
        echo.users,
        echo.group,
        clock=echo.clock,
    )
    with door.open() as listener:
        thread = threading.Thread(target=door.serve, args=(listener,))
        thread.start()
        try:
            yield echo
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(broadcast=st.binary(max_size=300), own=st.binary(max_size=300))
def test_parts_arrive_as_they_were_sent(echo: Echo, broadcast: bytes, own: bytes) -> None:
    assert call_site(echo.path, broadcast, own) == said(broadcast, own)


def test_large_parts_arrive(echo: Echo) -> None:
    large = os.urandom(5 << 20)
    assert call_site(echo.path, large, b"own") == said(large, b"own")


def test_many_callers_are_answered_one_at_a_time(echo: Echo) -> None:
    replies: dict[int, bytes] = {}

    def call(n: int) -> None:
        replies[n] = call_site(echo.path, b"%d" % n, b"")

    callers = [threading.Thread(target=call, args=(n,)) for n in range(10)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert replies == {n: said(b"%d" % n, b"") for n in range(10)}


def raw(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(120)
    connection.connect(str(path))
    return connection


def ended(connection: socket.socket) -> bool:
    """Whether the other end hangs up without a word."""
    try:
        return connection.recv(100) == b""
    except ConnectionResetError:
        return True


@contextlib.contextmanager
def awaited_record(words: str) -> Iterator[threading.Event]:
    """Yield an event that is set once the socket's log has a record with some words."""
    has_come = threading.Event()

    def passes(record: logging.LogRecord) -> bool:
        if words in record.getMessage():
            has_come.set()
        return True

    log = logging.getLogger(unix_socket.__name__)
    log.addFilter(passes)
    try:
        yield has_come
    finally:
        log.removeFilter(passes)


@pytest.mark.parametrize(
    "frame",
    [
        b"GET / HTTP/1.1\r\nHost: hospital\r\n\r\n",
        CALL[:-1] + b"2" + bytes(16),
        REPLY + bytes(16),
        CALL + struct.pack(">2Q", MAX_PART_BYTES + 1, 0),
        CALL + struct.pack(">2Q", 2**64 - 1, 2**64 - 1),
    ],
)
def test_malformed_frame_closes_connection_unanswered(echo: Echo, frame: bytes) -> None:
    with awaited_record("cut off") as has_come:
        with raw(echo.path) as connection:
            connection.sendall(frame)
            assert ended(connection)
        assert echo.heard == 0
        assert call_site(echo.path, b"still", b"there") == said(b"still", b"there")
        assert has_come.wait(120)  # a thread logs it after the connection has ended


@pytest.mark.parametrize("cut", [0, 3, 8, 20, 24, 30])
def test_disconnected_caller_does_not_affect_others(echo: Echo, cut: int) -> None:
    frame = CALL + struct.pack(">2Q", 8, 8) + bytes(16)
    with raw(echo.path) as connection:
        connection.sendall(frame[:cut])
    assert call_site(echo.path, b"x", b"y") == said(b"x", b"y")
    assert echo.heard == 1


def test_announced_length_allocates_no_memory(echo: Echo) -> None:
    with raw(echo.path) as connection:
        connection.sendall(CALL + struct.pack(">2Q", MAX_PART_BYTES, MAX_PART_BYTES) + b"a little")
        assert call_site(echo.path, b"x", b"y") == said(b"x", b"y")


def test_a_caller_that_stalls_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_frames, "IO_TIMEOUT", 0.05)
    for echo in served(Echo(tmp_path / "s")):
        with raw(echo.path) as connection:
            connection.sendall(CALL + b"\0")
            assert ended(connection)


def test_slow_bytes_do_not_extend_call_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each look at the clock finds 20 s gone, and each read finds one byte.
    monkeypatch.setattr(socket_frames, "_PIECE", 1)
    for echo in served(Echo(tmp_path / "s", clock=itertools.count(0.0, 20.0).__next__)):
        with raw(echo.path) as connection:
            connection.sendall(CALL + struct.pack(">2Q", 8, 8) + bytes(16))
            assert ended(connection)
        assert echo.heard == 0


@define
class Listener:
    """A listening socket that hands out given connections, and is then shut down."""

    connections: list[socket.socket]

    def accept(self) -> tuple[socket.socket, str]:
        if not self.connections:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return self.connections.pop(0), ""


def test_caller_without_a_user_is_turned_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone = socket.socket(socket.AF_UNIX)
    gone.close()  # as on macOS, where a caller that has left has no user
    door = SiteSocketServer(tmp_path / "s", said, {os.getuid()})
    listener: Any = Listener([gone])
    door.serve(listener)
    assert caplog.messages == ["a caller was cut off: [Errno 9] Bad file descriptor"]


def test_lack_of_threads_costs_one_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    pairs = [socket.socketpair() for _ in range(unix_socket.MAX_CONNECTIONS + 1)]
    door = SiteSocketServer(tmp_path / "s", said, {os.getuid()})
    listener: Any = Listener([ours for ours, _ in pairs])
    door.serve(listener)
    assert set(caplog.messages) == {"a caller was cut off: can't start new thread"}
    for _, theirs in pairs:
        with theirs:
            assert ended(theirs)


def test_silent_callers_block_nobody(echo: Echo) -> None:
    slow = [raw(echo.path) for _ in range(unix_socket.MAX_CONNECTIONS)]
    for connection in slow:
        connection.sendall(CALL[:3])
    assert call_site(echo.path, b"x", b"y") == said(b"x", b"y")
    assert ended(slow[0])
    for connection in slow:
        connection.close()


def test_waiting_caller_keeps_its_connection(tmp_path: Path) -> None:
    go, begun = threading.Event(), threading.Event()

    def answer(broadcast: bytes, own: bytes) -> bytes:
        begun.set()
        assert go.wait(60)
        return broadcast + own

    door = SiteSocketServer(tmp_path / "s", answer, {os.getuid()})
    with door.open() as listener, contextlib.ExitStack() as stack:
        thread = threading.Thread(target=door.serve, args=(listener,))
        thread.start()
        first = stack.enter_context(raw(door.path))
        first.sendall(CALL + struct.pack(">2Q", 1, 1) + b"xy")
        assert begun.wait(60)
        slow = [stack.enter_context(raw(door.path)) for _ in range(3 * unix_socket.MAX_CONNECTIONS)]
        assert ended(slow[0])
        go.set()
        assert first.recv(100).startswith(REPLY)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_call_from_other_user_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stranger = os.getuid() + 1
    for echo in served(Echo(tmp_path / "s", users={stranger})):
        with pytest.raises(RunError, match="does not answer"):
            call_site(echo.path, b"x", b"y")
        assert echo.heard == 0
        assert caplog.messages == [
            f"user {os.getuid()} of this machine tried to speak to the site."
        ]


def test_caller_sends_nothing_to_foreign_socket(echo: Echo) -> None:
    with pytest.raises(RunError, match="belongs to another user"):
        call_site(echo.path, b"secret", b"", user=os.getuid() + 1)
    assert echo.heard == 0


def test_socket_is_private_and_removed_at_exit(tmp_path: Path) -> None:
    path = tmp_path / "s"
    for _ in served(Echo(path)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


def test_a_socket_that_was_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    for echo in served(Echo(path)):
        assert call_site(path, b"x", b"y") == said(b"x", b"y")
        with (
            pytest.raises(RequestError, match="a process listens at"),
            SiteSocketServer(path, echo.answer, {0}).open(),
        ):
            pass


def test_file_at_socket_path_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with (
        pytest.raises(RequestError, match="is no socket"),
        SiteSocketServer(path, said, {0}).open(),
    ):
        pass
    assert path.read_text() == "precious"


def test_stranger_flood_writes_bounded_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for echo in served(Echo(tmp_path / "s", users={os.getuid() + 1})):
        for _ in range(10 * MAX_SENTENCES):
            with raw(echo.path) as connection:
                assert ended(connection)
    told = caplog.messages
    assert len(told) == MAX_SENTENCES + 1
    assert told[-1] == f"{9 * MAX_SENTENCES} more callers turned away in the last minute."


def test_missing_socket_folder_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(RequestError, match="cannot listen at"),
        SiteSocketServer(tmp_path / "no" / "s", said, {0}).open(),
    ):
        pass


def test_call_to_missing_site_fails(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not answer: No such file"):
        call_site(tmp_path / "s", b"", b"")


def test_call_retries_until_site_listens(tmp_path: Path) -> None:
    path, replies = tmp_path / "s", list[bytes]()
    caller = threading.Thread(
        target=lambda: replies.append(call_site(path, b"x", b"y", patience=60))
    )
    caller.start()
    for _ in served(Echo(path)):
        caller.join()
    assert replies == [said(b"x", b"y")]


def test_malformed_site_reply_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as liar:
        liar.bind(str(path))
        liar.listen()

        def lie() -> None:
            connection, _ = liar.accept()
            with connection:
                call = 0
                while call < len(CALL) + 16 + 2:
                    call += len(connection.recv(100))
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

        thread = threading.Thread(target=lie)
        thread.start()
        with pytest.raises(MessageError, match="do not start as a frame"):
            call_site(path, b"x", b"y")
        thread.join()


def test_peer_uid_returns_current_user() -> None:
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        assert peer_uid(one) == peer_uid(other) == os.getuid()
