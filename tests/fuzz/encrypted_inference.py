"""Both sides of encrypted inference, each as a case to be tried."""

from __future__ import annotations

import http.client
import io
from functools import cache
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from cohortium.errors import MessageError, RequestError, RunError
from cohortium.inference.encrypted import protocol, scheme, service
from cohortium.inference.encrypted.client import EncryptedClassifier
from cohortium.inference.encrypted.endpoint import ANSWER
from cohortium.messages.codec import Message, decode_either, encode
from cohortium.messages.encrypted import (
    EncryptedAnswer,
    EncryptedQuery,
    EncryptedRefusal,
    ServiceDescription,
)
from tests.fuzz.mutation import made, mutated

MEMORY = 1 << 25
"""Bytes that a query or an answer may hold: its numbers, and those of the library's own file."""

FEATURES, CLASSES = 3, 2

TOKENS = (
    b"\r\n", b"\n", b" ", b":", b"\x00", b"\xff", b"HTTP/1.1 ", b"HTTP/9.9", b"Content-Length: ",
    b"Content-Length: -1\r\n", b"Content-Length: 99999999999999\r\n", b"9" * 5_000,
    b"Transfer-Encoding: chunked\r\n\r\n", b"fffffffff\r\n", b"0\r\n\r\n", b"GET /v1/model ",
    b"POST /v1/answer ", b"Expect: 100-continue\r\n", b"a: b\r\n" * 101, b"x" * 70_000, b"200",
)  # fmt: skip


class _Connection:
    """A socket whose other end has sent some bytes, and reads whatever comes."""

    def __init__(self, sent: bytes) -> None:
        self.sent, self.received = sent, bytearray()

    def makefile(self, _mode: str, *_: object, **__: object) -> io.BytesIO:
        return io.BytesIO(self.sent)

    def sendall(self, data: bytes) -> None:
        self.received += data

    def settimeout(self, _seconds: float | None) -> None: ...

    def close(self) -> None: ...


@cache
def _service() -> service.InferenceService:
    weights = np.arange(FEATURES * CLASSES, dtype=np.float64).reshape(CLASSES, FEATURES)
    head = protocol.EncryptedHead.of(scheme.Scheme.open(), weights, np.ones(CLASSES))
    description = ServiceDescription(
        scheme=scheme.NAME, model=bytes(32), features=FEATURES, classes=CLASSES, bias=[],
        probe=bytes(4 * FEATURES), seed=head.seed,
    )  # fmt: skip
    return service.InferenceService(description, head)


@cache
def _query() -> EncryptedQuery:
    words = protocol.image_bytes(FEATURES) // scheme.WORD
    return EncryptedQuery(
        model=bytes(32),
        seed=_service().head.seed,
        key=bytes(protocol.KEY_BYTES),
        images=[(b"\x01" + bytes(scheme.WORD - 1)) * words],
    )


def _with_length(head: bytes, body: bytes) -> bytes:
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def _strange(message: Message, head: bytes, rng: Random) -> bytes:
    """A message behind a head of HTTP, with accidents in one of both."""
    body = encode(message)
    if rng.random() < 0.2:
        return mutated(_with_length(head, body), body[:99], rng, TOKENS)
    start, other = body[:200], rng.randbytes(200)
    # Most accidents are near the beginning, where the structure is.
    if rng.random() < 0.7:
        body = mutated(start, other, rng) + body[200:]
    else:
        body = mutated(body, other, rng)
    return _with_length(head, body)


def query(rng: Random) -> None:
    """Have the service read a request."""
    changes: dict[str, Any] = {}
    match rng.randrange(8):
        case 0:
            changes["key"] = rng.randbytes(rng.choice((0, 8, protocol.KEY_BYTES)))
        case 1:
            changes["images"] = _query().images * rng.choice((2, 17))
        case 2:
            changes["images"] = [rng.randbytes(protocol.image_bytes(FEATURES))]
    fields = {name: getattr(_query(), name) for name in EncryptedQuery.__struct_fields__}
    sent = _strange(
        EncryptedQuery(**(fields | changes)), b"POST " + ANSWER.encode() + b" HTTP/1.0\r\n", rng
    )
    made(b"")
    connection = _Connection(sent)
    server = SimpleNamespace(service=_service())
    service._Handler(connection, ("127.0.0.1", 1), server)  # type: ignore[arg-type]
    if not connection.received:
        raise MessageError("the connection was closed.")
    head, _, body = bytes(connection.received).partition(b"\r\n\r\n")
    status = int(head.split()[1]) if head.startswith(b"HTTP/1.0 ") else 400
    assert status < 500 or status == http.client.NOT_IMPLEMENTED, head
    if status != http.client.OK:
        raise MessageError("refused.")
    decode_either(body, EncryptedAnswer, ServiceDescription)


@cache
def _classifier() -> EncryptedClassifier:
    found = _service()
    key = protocol.ClinicKey.draw(found.head._scheme, found.head.seed)
    return EncryptedClassifier(
        None,  # type: ignore[arg-type]
        "http://127.0.0.1:1",
        None,
        found.description,
        key,
    )


@cache
def _answer() -> EncryptedAnswer:
    query = EncryptedQuery(
        model=bytes(32),
        seed=_service().head.seed,
        key=_classifier()._key.public,
        images=[_classifier()._key.encrypt(np.ones(FEATURES))],
    )
    _, answer = _service().answer(encode(query), "fuzz")
    assert isinstance(answer, EncryptedAnswer)
    return answer


def answer(rng: Random) -> None:
    """Have the clinic read an answer: to its query, or to its first question."""
    replies: tuple[Message, ...] = (_answer(), _service().description, EncryptedRefusal("no"))
    reply = rng.choice(replies[:1] * 3 + replies)
    status = rng.choice((b"200 OK", b"200 OK", b"400 Bad Request"))
    connection = _Connection(_strange(reply, b"HTTP/1.0 " + status + b"\r\n", rng))
    features = np.ones((1, FEATURES))
    classifier = _classifier()

    def connect(self: http.client.HTTPConnection) -> None:
        self.sock = connection

    made(b"")
    with mock.patch.object(http.client.HTTPConnection, "connect", connect):
        if isinstance(reply, ServiceDescription):
            public: Any = SimpleNamespace(
                sha256=bytes(32),
                spec=SimpleNamespace(output_shape=(CLASSES,)),
                require_probe=lambda probe: None,
            )
            with mock.patch.object(protocol.ClinicKey, "draw", return_value=classifier._key):
                EncryptedClassifier.connect(public, classifier.url, None)
            return
        (outputs,) = classifier._ask(features)
    assert outputs.shape == (CLASSES,)


ERRORS = (MessageError, RunError, RequestError)
"""How each side refuses."""
