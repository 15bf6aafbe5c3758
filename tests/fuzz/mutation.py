"""Bytes that a stranger might send: what a kind of message allows, and what becomes of it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from copy import deepcopy
from random import Random
from typing import Any, TypeAlias

import msgspec
from msgspec import inspect

from cohortium.messages.codec import MAGIC, Message

Builtins: TypeAlias = Any
"""What MessagePack can hold: None, numbers, text, bytes, lists and maps."""

TOKENS = (
    b"\xdd\xff\xff\xff\xff",  # a list of 2**32 - 1 entries
    b"\xdf\xff\xff\xff\xff",  # a map of as many
    b"\xc6\xff\xff\xff\xff",  # so many bytes
    b"\xdb\xff\xff\xff\xff",  # so much text
    b"\xc9\xff\xff\xff\xff\x01",  # an extension as large
    b"\xc1",  # never used
    b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",  # not a number
    b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + bytes(7),
    b"\xd6\xff\xff\xff\xff\xff",  # a date
    b"\xa2\xff\xfe",  # text that is no UTF-8
    b"\x91" * 2_000,
    b"\x81\xc0" * 2_000,
)
"""Pieces of MessagePack that readers have stumbled over."""

MAX_BYTES = 1 << 17
"""What is longer is cut, so that a reader's memory can be held to a fixed bound."""

STRANGE: tuple[Builtins, ...] = (
    None, True, -1, 0, 1 << 16, 1 << 31, (1 << 64) - 1, -(1 << 63), float("nan"), float("inf"), 1.5,
    "", "text", "\x00", b"", bytes(31), bytes(33), bytes(600), [], {}, [[]], {"type": "Keys"},
    {0: b""}, {-1: b""}, {1 << 63: {}},
)  # fmt: skip
"""Values that some field does not expect."""


# --- Valid ----------------------------------------------------------------------------------------


def tree(kind: type[Message], rng: Random) -> Builtins:
    """A valid message of `kind`, before it is written down."""
    return _value(inspect.type_info(kind), rng)


def _value(info: inspect.Type, rng: Random) -> Builtins:
    match info:
        case inspect.StructType():
            fields = {f.encode_name: _value(f.type, rng) for f in info.fields}
            return fields if info.tag_field is None else {info.tag_field: info.tag, **fields}
        case inspect.UnionType():
            return _value(rng.choice(info.types), rng)
        case inspect.DictType():
            size = _length(info.min_length, info.max_length, rng) % 7
            return {_value(info.key_type, rng): _value(info.value_type, rng) for _ in range(size)}
        case inspect.VarTupleType() | inspect.ListType():
            size = _length(info.min_length, info.max_length, rng)
            return [_value(info.item_type, rng) for _ in range(size)]
    return _plain(info, rng)


def _plain(info: inspect.Type, rng: Random) -> Builtins:
    match info:
        case inspect.IntType(ge=int(least)):
            most = info.le if info.lt is None else info.lt - 1
            assert most is not None, "an integer of a message has a largest value"
            near = rng.randint(least, min(least + 9, most))
            return rng.choice((near, rng.randint(least, most), least, most))
        case inspect.FloatType():
            return rng.choice((rng.uniform(-2.0, 2.0), 0.0, 1e300))
        case inspect.BytesType() | inspect.MemoryViewType():
            return rng.randbytes(_length(info.min_length, info.max_length, rng))
        case inspect.StrType():
            size = _length(info.min_length, info.max_length, rng)
            return "".join(rng.choice("a\u00e9\U0001f600") for _ in range(size))
        case inspect.LiteralType():
            return rng.choice(info.values)
        case inspect.NoneType():
            return None
    raise NotImplementedError(f"messages with fields of {info}: say here what is valid.")


def _length(least: int | None, most: int | None, rng: Random) -> int:
    low = least or 0
    return rng.randint(low, min(low + 40, low + 40 if most is None else most))


def written(content: Builtins) -> bytes:
    """A message as bytes."""
    return MAGIC + msgspec.msgpack.encode(content)


# --- Changed where it has structure ---------------------------------------------------------------


def bent(content: Builtins, rng: Random) -> bytes:
    """The message with something in it that does not belong there, still well-formed."""
    if isinstance(content, dict) and rng.random() < 0.1:
        return _twice(content, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(content))
        if not places:
            return written(deepcopy(rng.choice(STRANGE)))
        holder, key = rng.choice(places)
        _bend(holder, key, rng)
    return written(content)


def _places(node: Builtins) -> Iterator[tuple[Builtins, Any]]:
    if isinstance(node, dict | list):
        for key in node if isinstance(node, dict) else range(len(node)):
            yield node, key
            yield from _places(node[key])


def _bend(holder: Builtins, key: Any, rng: Random) -> None:
    old = holder[key]
    match rng.randrange(7):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[rng.choice(("x", "type", "", -1, 0, 1 << 16, "attempt"))] = old
        case 2 if isinstance(old, bytes | str):
            holder[key] = old[: rng.randint(0, len(old))] * rng.choice((1, 2, 9))
        case 3 if isinstance(old, int):
            holder[key] = max(-(1 << 63), min((1 << 64) - 1, old + rng.choice((-1, 1, 1 << 31))))
        case 4:
            holder[key] = [old]
        case 5 if isinstance(old, dict):
            holder[key] = {place: old.get(place, old) for place in range(rng.choice((1, 40)))}
        case _:
            holder[key] = deepcopy(rng.choice(STRANGE))


def _twice(content: dict[Any, Builtins], rng: Random) -> bytes:
    """A map that names one of its keys twice."""
    pairs = [*content.items(), rng.choice(list(content.items()))]
    rng.shuffle(pairs)
    parts = [msgspec.msgpack.encode(part) for pair in pairs for part in pair]
    return MAGIC + b"\xde" + len(pairs).to_bytes(2, "big") + b"".join(parts)


# --- Changed byte by byte -------------------------------------------------------------------------


def mutated(data: bytes, other: bytes, rng: Random, tokens: tuple[bytes, ...] = TOKENS) -> bytes:
    """`data` after a few accidents: bits, lengths, pieces of `other`, pieces of the format."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        start = rng.randint(0, len(data))
        end = min(len(data), start + rng.choice((0, 1, 4, 40)))
        match rng.randrange(8):
            case 0 | 1 if data:
                start = min(start, len(data) - 1)
                flipped = bytes([data[start] ^ 1 << rng.randrange(8)])
                data = data[:start] + flipped + data[start + 1 :]
            case 2:
                data = data[:start]
            case 3:
                data += rng.choice((b"\x00", rng.randbytes(3), data, other))
            case 4:
                data = data[:start] + data[end:]
            case 5:
                data = data[:end] + data[start:]
            case 6:
                data = data[:start] + other[rng.randint(0, len(other)) :]
            case _:
                piece = rng.choice(tokens) if tokens else rng.randbytes(4)
                data = data[:start] + piece + data[rng.choice((start, end, start + len(piece))) :]
    return data


def made(data: bytes) -> bytes:
    """What is to be read; where memory is measured, it is from here on."""
    if tracemalloc.is_tracing():
        tracemalloc.clear_traces()
    return data[:MAX_BYTES]


def stranger(
    sample: Callable[[Random], bytes], rng: Random, tokens: tuple[bytes, ...] = TOKENS
) -> bytes:
    """Random bytes, a valid message, or, most often, a mutated one."""
    match rng.randrange(20):
        case 0:
            return made(rng.randbytes(rng.randrange(200)))
        case 1:
            return made(sample(rng)[: len(MAGIC)] + rng.randbytes(rng.randrange(200)))
        case 2:
            return made(sample(rng))
    return made(mutated(sample(rng), sample(rng), rng, tokens))
