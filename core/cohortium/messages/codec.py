"""Typed messages as bytes: versioned, bounded, strictly decoded, never executable.

A message is a frozen `Message` subclass. The function `encode` writes a MessagePack pair: a mark
with the version, then the message with its tag. The function `decode` accepts exactly the expected
classes: no unknown field, no missing field, no other type, no more bytes than the limit.

The sender may be lying. A decoded message is well-formed, not true.
"""

from __future__ import annotations

from functools import cache, reduce
from operator import or_
from typing import Any, TypeVar

import msgspec

from cohortium.errors import MessageError
from cohortium.text import escape_control_characters

MARK = "CHT\x02"
"""Mark of this format's messages, whose last character is the version."""

MAGIC = b"\x92\xa4" + MARK.encode()
"""First bytes of every message: a pair's head, and the mark."""

MAX_MESSAGE_BYTES = 1 << 32
"""Largest size of a message in bytes, without a reader's tighter limit."""

WELL_FORMED_BYTES = 64
"""Largest part of an offending value that an error quotes, in characters."""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every message, which is immutable and has a tag.

    The tag is its name on the wire. Subclass it with fields of plain types and a tag. The tag and
    the field names are the format. You may rename the class, but not these. Annotate bounds with
    `msgspec.Meta`:

    Examples:
        >>> class Greeting(Message, frozen=True, tag="greeting"):
        ...     name: str
        >>> decode(encode(Greeting("site 3")), Greeting)
        Greeting(name='site 3')
    """


M = TypeVar("M", bound=Message)


def encode(message: Message) -> bytes:
    """Return `message` as bytes, equal for equal messages.

    Raises:
        TypeError: The class of the message has no tag.
    """
    _require_tag(type(message))
    # A pair is written at once, so a vector is not copied again to follow the mark.
    return msgspec.msgpack.encode((MARK, message))


def decode(data: bytes | memoryview, kind: type[M], *, limit: int = MAX_MESSAGE_BYTES) -> M:
    """Return the message of class `kind` in `data`.

    Args:
        data: Untrusted bytes.
        kind: The expected class.
        limit: Largest number of bytes.

    Raises:
        MessageError: `data` is anything but one well-formed message of class `kind`.
    """
    message: M = _decode(data, (kind,), limit)
    return message


def decode_either(
    data: bytes | memoryview, *kinds: type[Message], limit: int = MAX_MESSAGE_BYTES
) -> Any:
    """Return the message in `data`, which must be of one of `kinds`.

    It must have at most `limit` bytes.

    Raises:
        MessageError: As for `decode`.
    """
    return _decode(data, kinds, limit)


def _require_tag(kind: type[Message]) -> None:
    """Refuse a class without a tag.

    Without a tag, bytes of one class would pass for those of another with the same fields.
    """
    if kind.__struct_config__.tag is None:
        raise TypeError(
            f'the message class {kind.__name__} has no tag; declare it with tag="…", its name in '
            "bytes that are sent and kept."
        )


@cache
def _decoder(kinds: tuple[type[Message], ...]) -> msgspec.msgpack.Decoder[Any]:
    """Return the decoder of one message of any of `kinds`.

    It is kept, as making one takes longer than decoding a short message.
    """
    for kind in kinds:
        _require_tag(kind)
    return msgspec.msgpack.Decoder(reduce(or_, kinds))


def _decode(data: bytes | memoryview, kinds: tuple[type[Message], ...], limit: int) -> Any:
    decoder, wanted = _decoder(kinds), " or ".join(kind.__name__ for kind in kinds)
    if len(data) > limit:
        raise MessageError(f"a {wanted} message may take {limit} bytes, but {len(data)} came.")
    view = memoryview(data)
    if view[: len(MAGIC)] != MAGIC:
        raise MessageError(f"expected a {wanted} message of version {MAGIC[-1]}, got other bytes.")
    try:
        return decoder.decode(view[len(MAGIC) :])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        what = escape_control_characters(str(error)[:WELL_FORMED_BYTES])
        raise MessageError(f"not a well-formed {wanted} message: {what}.") from error
