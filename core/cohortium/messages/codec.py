"""Typed messages as bytes: versioned, bounded, strictly decoded, and never executable.

A message is a frozen `Message` subclass.  `encode` writes a MessagePack pair: a mark with the
version, then the message with its tag.  `decode` accepts exactly the expected classes: no unknown
field, no missing field, no other type, no more bytes than the limit.

The sender may be lying.  A decoded message is well-formed, not true.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from cohortium.errors import MessageError
from cohortium.text import escape_control_characters

MARK = "CHT\x02"
"""Marks a message of this format; the last character is its version."""

MAGIC = b"\x92\xa4" + MARK.encode()
"""What every message begins with: the head of a pair, and the mark."""

MAX_MESSAGE_BYTES = 1 << 32
"""Bytes that no message may exceed, where its reader sets no tighter limit."""

WELL_FORMED_BYTES = 64
"""How much of an offending value an error may quote."""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every message: immutable, and named on the wire by its tag.

    Subclass it with fields of plain types and a tag.  The tag and the field names are the format:
    the class may be renamed, they may not.  Annotate bounds with `msgspec.Meta`:

    Examples:
        >>> class Greeting(Message, frozen=True, tag="greeting"):
        ...     name: str
        >>> decode(encode(Greeting("site 3")), Greeting)
        Greeting(name='site 3')
    """


M = TypeVar("M", bound=Message)


def encode(message: Message) -> bytes:
    """Return `message` as bytes; equal messages give equal bytes.

    Raises:
        TypeError: Its class has no tag.
    """
    _require_tag(type(message))
    # As a pair it is written at once: a vector is not copied again to come after the mark.
    return msgspec.msgpack.encode((MARK, message))


def decode(data: bytes | memoryview, kind: type[M], *, limit: int = MAX_MESSAGE_BYTES) -> M:
    """The message of class `kind` in `data`.

    Args:
        data: Untrusted bytes.
        kind: The class that is expected here.
        limit: The most bytes that are looked at.

    Raises:
        MessageError: `data` is anything but one well-formed message of class `kind`.
    """
    _require_tag(kind)
    message: M = _decode(data, kind, kind.__name__, limit)
    return message


def decode_either(
    data: bytes | memoryview, *kinds: type[Message], limit: int = MAX_MESSAGE_BYTES
) -> Any:
    """The message in `data`, which must be of one of `kinds` and within `limit` bytes.

    Raises:
        MessageError: As for `decode`.
    """
    for kind in kinds:
        _require_tag(kind)
    union: Any = kinds[0]
    for kind in kinds[1:]:
        union = union | kind
    return _decode(data, union, " or ".join(kind.__name__ for kind in kinds), limit)


def _require_tag(kind: type[Message]) -> None:
    """Without a tag, bytes of one class would pass for those of another with the same fields."""
    if kind.__struct_config__.tag is None:
        raise TypeError(
            f'the message class {kind.__name__} has no tag; declare it with tag="…", its name in '
            "bytes that are sent and kept."
        )


def _decode(data: bytes | memoryview, kind: Any, wanted: str, limit: int) -> Any:
    if len(data) > limit:
        raise MessageError(f"a {wanted} message may take {limit} bytes, but {len(data)} came.")
    view = memoryview(data)
    if view[: len(MAGIC)] != MAGIC:
        raise MessageError(f"expected a {wanted} message of version {MAGIC[-1]}, got other bytes.")
    try:
        return msgspec.msgpack.decode(view[len(MAGIC) :], type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        what = escape_control_characters(str(error)[:WELL_FORMED_BYTES])
        raise MessageError(f"not a well-formed {wanted} message: {what}.") from error
