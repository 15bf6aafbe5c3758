"""What a party on secret shares reads from another, each as a case to be tried."""

from __future__ import annotations

import json
from random import Random
from types import SimpleNamespace

from cohortium.inference.shared.party import Link, SessionError, head_of, pack, unpack
from tests.fuzz.mutation import made, mutated, stranger

SIZE = 64
"""Bytes of a share's numbers."""

TOKENS = (
    b"\x08", b"\x1a", b"\x80" * 9, b"\xff" * 8, (8).to_bytes(8, "little"), bytes(8),
    SIZE.to_bytes(8, "little"), (1 << 63).to_bytes(8, "little"),
)  # fmt: skip

TEXTS = (
    b"[" * 30_000, b'{"a":' * 9_000, b"9" * 5_000, b"NaN", b"\xff", b"\\ud800", b'"program"',
    b" " * 70_000, b"null", b"{}",
)  # fmt: skip


def _share(rng: Random) -> SimpleNamespace:
    chunks = [
        b"\x08" + bytes([SIZE * 2]) + b"\x01\x1a" + bytes([SIZE]) + rng.randbytes(SIZE)
        for _ in range(2)
    ]
    return SimpleNamespace(meta=b"\x08\x0b\x18\x01form", share_chunks=chunks)


def share(rng: Random) -> None:
    """Have a party read another's share: it takes one of its own form alone."""
    data = stranger(lambda rng: pack(_share(rng)), rng, TOKENS)
    own = _share(rng)
    found = unpack(SimpleNamespace(), data, own)
    assert found.meta == own.meta
    assert [*map(len, found.share_chunks)] == [*map(len, own.share_chunks)]
    assert [*map(head_of, found.share_chunks)] == [*map(head_of, own.share_chunks)]
    assert pack(found) == data


def text(rng: Random) -> None:
    """Have a party read another's message."""
    sent = json.dumps({"program": rng.randbytes(32).hex(), "images": 3, "refusal": None}).encode()
    data = made(mutated(sent, sent, rng, TEXTS))
    link = Link(SimpleNamespace(recv=lambda _sender: data), 0, 2)
    assert isinstance(link.hear(1), dict)


ERRORS = (SessionError,)
"""How a party refuses."""
