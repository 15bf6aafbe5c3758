"""The model owner's HTTP service, on the standard library's server.

A connection carries one request. `GET /v1/model` returns the `ServiceDescription`, and
`POST /v1/answer` takes an `EncryptedQuery` and returns an `EncryptedAnswer`, or an
`EncryptedRefusal`.

Guarantees:
    The log has no image, ciphertext, result or address of a client, only counts of refusals.

    A request must pass whole within `REQUEST_SECONDS`, the TLS handshake included. Each connection
    has a thread, so a slow client delays no other. At most `MAX_CONNECTIONS` are open, and
    `MAX_CONNECTIONS_OF_ADDRESS` from one address.

    A body is read only if its announced size is at most that of the largest query.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import socket
import ssl
import threading
from collections import Counter
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final

from attrs import field, frozen

from cohortium.errors import CohortiumError, MessageError, RequestError
from cohortium.inference.encrypted import protocol, scheme
from cohortium.inference.encrypted.endpoint import ANSWER, DESCRIPTION, require_loopback
from cohortium.inference.encrypted.public_model import digest, model_table
from cohortium.inference.encrypted.served_head import ServedHead
from cohortium.messages.codec import Message, decode, encode
from cohortium.messages.encrypted import (
    MAX_IMAGES,
    EncryptedAnswer,
    EncryptedQuery,
    EncryptedRefusal,
    ServiceDescription,
)

if TYPE_CHECKING:
    from cohortium.inference.classifier import Classifier
    from cohortium.inference.encrypted.answer_limit import AnswerLimit

_LOG = logging.getLogger(__name__)

REQUEST_SECONDS: Final = 120.0
"""Seconds for a whole request, from its handshake to the delivery of its answer."""

MAX_CONNECTIONS: Final = 64
MAX_CONNECTIONS_OF_ADDRESS: Final = 16

MAX_BODY_BYTES: Final = 1 << 26
"""Largest body. A model with many features takes fewer images in a query."""


@frozen(eq=False)
class InferenceService:
    """A model whose linear layer answers encrypted queries.

    Attributes:
        description: Of the model, which is public.
        head: The linear layer.
        limit: Limit of the answers for each client. None is no limit.
    """

    description: ServiceDescription
    head: protocol.EncryptedHead = field(repr=False)
    limit: AnswerLimit | None = None

    @classmethod
    def of(cls, classifier: Classifier, limit: AnswerLimit | None = None) -> InferenceService:
        """Prepare the model of a run.

        Raises:
            RequestError: Its network is not one layer on fixed features, or the library is missing.
        """
        library = scheme.Scheme.open()
        served = ServedHead.of(classifier)
        head = protocol.EncryptedHead.of(library, served.weights, served.bias)
        description = ServiceDescription(
            scheme=scheme.NAME,
            model=digest(model_table(classifier), classifier.dataset_info),
            features=served.form.features,
            classes=served.form.classes,
            bias=list(served.form.bias),
            probe=served.probe.tobytes(),
            seed=head.seed,
        )
        return cls(description, head, limit)

    @property
    def max_body(self) -> int:
        """Largest size of a query in bytes."""
        images = MAX_IMAGES * protocol.image_bytes(self.head.features)
        return protocol.KEY_BYTES + min(images, MAX_BODY_BYTES) + (1 << 12)

    def answer(self, body: bytes, client: str) -> tuple[HTTPStatus, Message]:
        """Return the answer to a query, and the status of HTTP.

        Args:
            body: Bytes of a party that may lie.
            client: Name of the party, by which answers are counted.
        """
        try:
            query = decode(body, EncryptedQuery, limit=self.max_body)
            self._check(query)
        except MessageError as error:
            return HTTPStatus.BAD_REQUEST, EncryptedRefusal(str(error)[:400])
        if self.limit is not None and not self.limit.take(client, len(query.images)):
            reason = f"the limit of {self.limit.most} images for this client is reached."
            return HTTPStatus.TOO_MANY_REQUESTS, EncryptedRefusal(reason)
        try:
            return HTTPStatus.OK, EncryptedAnswer(
                [self.head.answer(query.key, image) for image in query.images]
            )
        except MessageError as error:
            return HTTPStatus.BAD_REQUEST, EncryptedRefusal(str(error)[:400])

    def _check(self, query: EncryptedQuery) -> None:
        if query.model != self.description.model:
            raise MessageError("the query is for another model; ask the owner for its folder.")
        if query.seed != self.head.seed:
            raise MessageError("the query is for an earlier start of the service; ask again.")


@frozen(eq=False)
class _Connections:
    """Open connections, by address."""

    _open: Counter[str] = field(factory=Counter, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def take(self, address: str) -> bool:
        with self._lock:
            if (
                self._open.total() >= MAX_CONNECTIONS
                or self._open[address] >= MAX_CONNECTIONS_OF_ADDRESS
            ):
                return False
            self._open[address] += 1
            return True

    def leave(self, address: str) -> None:
        with self._lock:
            self._open[address] -= 1
            if not self._open[address]:
                del self._open[address]


class InferenceServer(ThreadingHTTPServer):
    """The service at an address.

    Use it as a context, and call `serve_forever`.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self, service: InferenceService, address: tuple[str, int], tls: ssl.SSLContext | None
    ) -> None:
        """Listen at an address.

        Args:
            service: Answers the queries.
            address: Host and port. Port 0 takes a free one.
            tls: Context of `server_tls`. None serves this machine alone, without TLS.

        Raises:
            RequestError: The address cannot be used.
        """
        if tls is None:
            require_loopback(address[0], "give --certificate and --key")
        self.service, self.tls = service, tls
        self.connections = _Connections()
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        try:
            super().__init__(address, _Handler)
        except (OSError, OverflowError) as error:
            raise RequestError(
                f"cannot listen at {address[0]}:{address[1]} "
                f"({getattr(error, 'strerror', None) or error}); give another --listen."
            ) from error

    @property
    def url(self) -> str:
        """The service's URL."""
        host = str(self.server_address[0])
        name = f"[{host}]" if ":" in host else host
        return f"{'http' if self.tls is None else 'https'}://{name}:{self.server_port}"

    def server_bind(self) -> None:
        """Bind without a look-up of the host's name, which the standard library would make."""
        socket.socket.bind(self.socket, self.server_address)
        self.server_address = self.socket.getsockname()
        host, self.server_port = self.server_address[:2]
        self.server_name = str(host)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a connection in its own thread, within the time of a request."""
        address = str(client_address[0])
        if not self.connections.take(address):
            self.shutdown_request(request)
            return
        connection, watch = request, _watch(request)
        try:
            if self.tls is not None:
                # A handshake waits for the client, so it is made here and not in the accepting
                # thread.
                connection = self.tls.wrap_socket(
                    request, server_side=True, do_handshake_on_connect=False
                )
                watch.cancel()
                watch = _watch(connection)
                connection.do_handshake()
            super().process_request_thread(connection, client_address)
        except (OSError, ValueError):
            # After `wrap_socket`, this one alone has the connection.
            self.shutdown_request(connection)
        finally:
            watch.cancel()
            self.connections.leave(address)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Log a fault without its values, which may be of a query."""
        import sys

        kind = sys.exc_info()[0]
        if kind is not None and not issubclass(kind, OSError | ValueError):
            _LOG.error("a request failed with %s.", kind.__name__)


def _watch(connection: socket.socket) -> threading.Timer:
    """Return a running timer that ends a connection after the time of a request."""
    watch = threading.Timer(REQUEST_SECONDS, _cut, (connection,))
    watch.daemon = True
    watch.start()
    return watch


def _cut(connection: socket.socket) -> None:
    """End a connection whose time is over."""
    with contextlib.suppress(OSError, ValueError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    """One request of a connection."""

    server: InferenceServer
    server_version = "cohortium"
    sys_version = ""
    protocol_version = "HTTP/1.0"
    timeout = REQUEST_SECONDS

    def do_GET(self) -> None:
        if self.path == DESCRIPTION:
            self._send(HTTPStatus.OK, self.server.service.description)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, f"there is only {DESCRIPTION} and {ANSWER}.")

    def do_POST(self) -> None:
        if self.path != ANSWER:
            self._refuse(HTTPStatus.NOT_FOUND, f"queries go to {ANSWER}.")
            return
        announced = self.headers.get("Content-Length", "")
        most = self.server.service.max_body
        if not (announced.isascii() and announced.isdigit() and len(announced) <= len(str(most))):
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "the size of a query must be announced.")
            return
        if int(announced) > most:
            self._refuse(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"a query may have {most} bytes; ask for fewer images at once.",
            )
            return
        body = self.rfile.read(int(announced))
        if len(body) == int(announced):
            self._send(*self._answer(body))

    def _answer(self, body: bytes) -> tuple[HTTPStatus, Message]:
        try:
            return self.server.service.answer(body, self._client())
        except (CohortiumError, OSError, RuntimeError, ValueError) as error:
            # The library reports values that it cannot compute with as such errors.
            _LOG.error("a query failed with %s.", type(error).__name__)
            return HTTPStatus.INTERNAL_SERVER_ERROR, EncryptedRefusal("the service failed.")

    def _client(self) -> str:
        """Return the name by which answers are counted.

        It is the fingerprint of the client's certificate. Without certificates all clients share
        one name, because an address is no identity.
        """
        if isinstance(self.connection, ssl.SSLSocket):
            certificate = self.connection.getpeercert(binary_form=True)
            if certificate:
                return hashlib.sha256(certificate).hexdigest()
        return "anyone"

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self._send(status, EncryptedRefusal(reason))

    def _send(self, status: HTTPStatus, message: Message) -> None:
        body = encode(message)
        self.send_response_only(status)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing, because a path or an address may say who asks for what."""
