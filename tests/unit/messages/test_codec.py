from __future__ import annotations

import contextlib
from typing import Annotated

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium.errors import MessageError
from cohortium.messages.codec import MAGIC, Message, decode, decode_either, encode
from cohortium.messages.deployment import Acceptance
from cohortium.messages.run import Refusal, Reply, Request


class Letter(Message, frozen=True, tag="letter"):
    number: Annotated[int, msgspec.Meta(ge=0, lt=10)]
    text: Annotated[str, msgspec.Meta(max_length=5)]


class Parcel(Message, frozen=True, tag="parcel"):
    content: bytes


REQUEST = Request(
    session=bytes(16), round=1, attempt=2, stage=0, weights=memoryview(bytes(8)), body=b"body"
)


@pytest.mark.parametrize("message", [Letter(3, "abc"), Parcel(b"x" * 1000), REQUEST])
def test_decoding_undoes_encoding(message: Message) -> None:
    assert decode(encode(message), type(message)) == message


def test_equal_messages_have_equal_bytes() -> None:
    assert encode(Letter(3, "abc")) == encode(Letter(3, "abc"))


def test_a_message_is_plain_messagepack() -> None:
    content = {"type": "letter", "number": 3, "text": "abc"}
    assert msgspec.msgpack.decode(encode(Letter(3, "abc"))) == ["CHT\x02", content]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "other bytes"),
        (encode(Letter(1, "a"))[1:], "other bytes"),
        (MAGIC[:-1] + b"\x01" + encode(Letter(1, "a"))[len(MAGIC) :], "version 2"),
        (encode(Letter(1, "a")) + b"\x00", "well-formed"),
        (encode(Letter(1, "a"))[:-1], "well-formed"),
        (encode(Parcel(b"")), "well-formed"),
        (MAGIC + msgspec.msgpack.encode({"type": "letter", "number": 1}), "text"),
        (MAGIC + msgspec.msgpack.encode({"type": "letter", "number": 10, "text": ""}), "int"),
        (MAGIC + msgspec.msgpack.encode({"type": "letter", "number": 1, "text": "abcdef"}), "str"),
        (
            MAGIC + msgspec.msgpack.encode({"type": "letter", "number": 1, "text": "", "x": 1}),
            "unknown field",
        ),
    ],
)
def test_anything_but_one_well_formed_message_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(MessageError, match=words):
        decode(data, Letter)


def test_message_above_size_limit_is_refused() -> None:
    with pytest.raises(MessageError, match="may take 10 bytes"):
        decode(encode(Parcel(bytes(100))), Parcel, limit=10)


def test_one_of_several_kinds_may_be_expected() -> None:
    assert decode_either(encode(Parcel(b"1")), Letter, Parcel) == Parcel(b"1")
    with pytest.raises(MessageError, match="Letter or Parcel"):
        decode_either(encode(Reply(0, 0, b"")), Letter, Parcel)


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_random_bytes_are_refused_and_nothing_else_happens(data: bytes) -> None:
    for prefix in (b"", MAGIC):
        with pytest.raises(MessageError):
            decode_either(prefix + data, Reply, Refusal)


@given(st.data())
@settings(max_examples=300)
def test_changed_bytes_decode_or_are_refused(data: st.DataObject) -> None:
    valid = bytearray(encode(REQUEST))
    for _ in range(data.draw(st.integers(1, 3))):
        valid[data.draw(st.integers(0, len(valid) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(MessageError):
        decode(bytes(valid), Request)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_state_of_a_plan_is_finite(number: float) -> None:
    sent = msgspec.structs.replace(REQUEST, plan_state=(1.0, number))
    with pytest.raises(MessageError, match="float"):
        decode(encode(sent), Request)


@pytest.mark.parametrize("versions", [{"torch": "1" * 300}, {"t" * 300: "1"}])
def test_versions_of_another_party_are_short(versions: dict[str, str]) -> None:
    with pytest.raises(MessageError, match="not a well-formed Acceptance"):
        decode(encode(Acceptance(bytes(16), 0, 0, versions)), Acceptance)
