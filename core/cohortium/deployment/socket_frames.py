"""Frames of the channel to a site process, each with a deadline.

A frame must arrive whole by its deadline.

frame   mark, for each part its length in 8 bytes (big-endian), then the parts
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from attrs import define, field

from cohortium.errors import MessageError

if TYPE_CHECKING:
    from collections.abc import Callable

CALL = b"CHT-call"
REPLY = b"CHT-rply"
"""First bytes of a frame. Another version would have other marks."""

MAX_PART_BYTES = 1 << 32
"""Most bytes of a part."""

IO_TIMEOUT = 30.0
"""Seconds within which a frame must pass whole. The time of its bytes is added."""

MIN_BYTES_PER_SECOND = 1 << 24
"""Lowest rate of a frame, which determines the time of its bytes."""

_PIECE = 1 << 20


@define(eq=False)
class DeadlineSocket:
    """Connection with a deadline, before which a whole frame must pass.

    The deadline does not move, however small or frequent the pieces are.
    """

    connection: socket.socket
    clock: Callable[[], float]
    _deadline: float = field(init=False)

    @_deadline.default
    def _begun(self) -> float:
        return self.clock() + IO_TIMEOUT

    def allow(self, length: int) -> None:
        """Extend the deadline by the time of `length` bytes at `MIN_BYTES_PER_SECOND`."""
        self._deadline += length / MIN_BYTES_PER_SECOND

    def peek(self) -> bytes:
        """Return the next byte without removing it.

        It is empty if the other end has closed the connection.
        """
        self._wait()
        return self.connection.recv(1, socket.MSG_PEEK)

    def receive(self, most: int) -> bytes:
        """Return some bytes, `most` at the most.

        They are empty if the other end has closed the connection.
        """
        self._wait()
        return self.connection.recv(most)

    def send(self, piece: bytes | memoryview) -> None:
        """Send all of `piece`."""
        self._wait()
        self.connection.sendall(piece)

    def _wait(self) -> None:
        left = self._deadline - self.clock()
        if left <= 0:
            raise TimeoutError("timed out")
        self.connection.settimeout(left)


def send(line: DeadlineSocket, mark: bytes, *parts: bytes) -> None:
    """Send a frame.

    Raises:
        OSError: The frame was not taken in time, or the other end has closed the connection.
    """
    lengths = struct.pack(f">{len(parts)}Q", *map(len, parts))
    line.allow(sum(map(len, parts)))
    line.send(mark + lengths)
    for part in parts:
        view = memoryview(part)
        for start in range(0, len(view), _PIECE):
            line.send(view[start : start + _PIECE])


def receive(line: DeadlineSocket, mark: bytes, *, parts: int) -> list[bytes]:
    """Return the parts of the next frame.

    Raises:
        MessageError: The bytes are no such frame, or the frame is too large.
        OSError: The frame did not arrive in time, or the other end has closed the connection.
    """
    head = _exactly(line, len(mark) + 8 * parts)
    if head[: len(mark)] != mark:
        raise MessageError("the bytes on the channel do not start as a frame does.")
    lengths = struct.unpack(f">{parts}Q", head[len(mark) :])
    if max(lengths) > MAX_PART_BYTES:
        raise MessageError(
            f"a part of a frame may take {MAX_PART_BYTES} bytes, not {max(lengths)}."
        )
    line.allow(sum(lengths))
    return [_exactly(line, length) for length in lengths]


def _exactly(line: DeadlineSocket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        piece = line.receive(min(_PIECE, length - len(data)))
        if not piece:
            raise ConnectionError("the connection ended within a frame")
        data += piece
    return bytes(data)
