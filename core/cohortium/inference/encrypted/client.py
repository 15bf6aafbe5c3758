"""A clinic's side of encrypted inference."""

from __future__ import annotations

import http.client
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from attrs import field, frozen

from cohortium.errors import DataError, MessageError, RequestError, RunError
from cohortium.inference.encrypted import protocol, scheme
from cohortium.inference.encrypted.endpoint import ANSWER, DESCRIPTION, parse_url
from cohortium.inference.encrypted.head_form import HeadForm
from cohortium.messages.codec import Message, decode, encode
from cohortium.messages.encrypted import (
    MAX_CLASSES,
    MAX_FEATURES,
    EncryptedAnswer,
    EncryptedQuery,
    EncryptedRefusal,
    ServiceDescription,
)
from cohortium.text import escape_control_characters

if TYPE_CHECKING:
    import ssl

    from numpy.typing import NDArray

    from cohortium.inference.encrypted.public_model import PublicModel

PATIENCE: Final = 60.0
"""Seconds to wait for each part of an answer."""

QUERY_IMAGES: Final = 4
"""Most images that the command sends at once."""

QUERY_BYTES: Final = 1 << 24
"""Bytes of ciphertexts above which a query has fewer images."""

_SLACK: Final = 1 << 12
"""Bytes of a message beyond its arrays."""


@frozen(eq=False)
class EncryptedClassifier:
    """A model whose head is elsewhere.

    Attributes:
        public: The model's public part.
        url: Of the owner's service.

    Guarantees:
        Images, features and outputs stay in this process. Only an `EncryptedQuery` leaves it. No
        message depends on a decrypted value.
    """

    public: PublicModel
    url: str
    _tls: ssl.SSLContext | None = field(repr=False)
    _description: ServiceDescription = field(repr=False)
    _key: protocol.ClinicKey = field(repr=False)

    @classmethod
    def connect(
        cls, public: PublicModel, url: str, tls: ssl.SSLContext | None
    ) -> EncryptedClassifier:
        """Ask the service for its description, and draw a key.

        Raises:
            RequestError: The URL is wrong, or the service has another model.
            RunError: The service does not answer.
            MessageError: Its answer is malformed.
        """
        library = scheme.Scheme.open()
        found = decode(
            _call(url, tls, DESCRIPTION, most=4 * MAX_FEATURES + 9 * MAX_CLASSES + _SLACK),
            ServiceDescription,
        )
        if found.scheme != scheme.NAME:
            raise RequestError(
                f"{url} uses other parameters of encryption than {scheme.NAME}; install the same "
                "version of Cohortium."
            )
        if found.model != public.sha256 or [found.classes] != list(public.spec.output_shape):
            raise RequestError(
                f"{url} serves another model than the one of this folder; ask the model's owner "
                "for its folder."
            )
        if len(found.probe) != 4 * found.features:
            raise MessageError(f"the probe of {url} is not of its number of features.")
        if not (len(found.bias) in (0, found.classes) and np.isfinite(found.bias).all()):
            raise MessageError(f"{url} must give a finite bias for each output, or none.")
        form = HeadForm.of(found)
        if form.inputs > MAX_FEATURES or form.outputs > MAX_CLASSES:
            raise MessageError(
                f"{url} asks for {form.inputs:,} numbers of an image, and {MAX_FEATURES:,} are "
                "possible."
            )
        public.require_probe(np.frombuffer(found.probe, np.dtype("<f4")))
        return cls(public, url, tls, found, protocol.ClinicKey.draw(library, found.seed))

    def predict(self, images: NDArray[Any]) -> NDArray[Any]:
        """Return the task's predictions, shape (N, …), for images (N, C, …).

        Raises:
            DataError: The images are not of the type and shape on which the model was trained.
            RunError: The service does not answer, or refuses.
            MessageError: Its answer is malformed.
        """
        import torch

        size = protocol.image_bytes(HeadForm.of(self._description).inputs)
        step = max(1, min(QUERY_IMAGES, QUERY_BYTES // size))
        outputs = [
            output
            for start in range(0, len(images), step)
            for output in self._ask(self.public.features(images[start : start + step]))
        ]
        found = self.public.spec.task.predict(torch.from_numpy(np.array(outputs)))
        return np.asarray(found.numpy())

    def _ask(self, features: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        if features.shape[1] != self._description.features:
            raise DataError(
                f"the model's features are {features.shape[1]} numbers here, and "
                f"{self._description.features} at its owner."
            )
        form = HeadForm.of(self._description)
        query = EncryptedQuery(
            model=self._description.model,
            seed=self._description.seed,
            key=self._key.public,
            images=[self._key.encrypt(form.encode(row)) for row in features],
        )
        size = len(features) * form.outputs * protocol.OUTPUT_BYTES
        body = _call(self.url, self._tls, ANSWER, query=query, most=size + _SLACK)
        answers = decode(body, EncryptedAnswer).outputs
        if len(answers) != len(features):
            raise MessageError(f"{self.url} answered for {len(answers)} images.")
        return [
            form.logits(self._key.decrypt(answer, form.outputs), row)
            for answer, row in zip(answers, features, strict=True)
        ]


def _call(
    url: str, tls: ssl.SSLContext | None, path: str, *, query: Message | None = None, most: int
) -> bytes:
    """Return the body of the service's answer, `most` bytes at the most."""
    scheme_name, host, port = parse_url(url)
    connection = (
        http.client.HTTPSConnection(host, port, timeout=PATIENCE, context=tls)
        if scheme_name == "https"
        else http.client.HTTPConnection(host, port, timeout=PATIENCE)
    )
    try:
        if query is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, encode(query))
        response = connection.getresponse()
        body = response.read(most + 1)
    except (OSError, http.client.HTTPException) as error:
        import ssl

        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, ssl.SSLError):
            raise RunError(
                f"{url} does not answer over TLS "
                f"({escape_control_characters(str(reason)[:200])}); compare the address, --ca "
                "and --certificate with what the model's owner told."
            ) from error
        raise RunError(
            f"{url} does not answer ({escape_control_characters(str(reason)[:200])}); ask the "
            "model's owner whether the service runs."
        ) from error
    finally:
        connection.close()
    if len(body) > most:
        raise MessageError(f"the answer of {url} has more than {most} bytes.")
    if response.status != http.client.OK:
        try:
            refusal = decode(body, EncryptedRefusal).reason
        except MessageError:
            refusal = f"status {response.status}"
        raise RunError(f"{url} refused: {escape_control_characters(refusal).rstrip('.')}.")
    return body
