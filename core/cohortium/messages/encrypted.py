"""Messages between a clinic and the owner of a model, for encrypted inference.

Numbers of the encryption scheme are arrays of unsigned 64-bit integers, little-endian.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from cohortium.messages.codec import Message

Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]

MAX_IMAGES = 16
"""Most images of one query."""

MAX_FEATURES = 1 << 18
"""Most features of an image."""

MAX_CLASSES = 1 << 12
"""Most outputs of a model."""


MAX_KEY_BYTES = 1 << 18
"""Most bytes of a public key. Those of the scheme have fewer."""

Ciphertexts = Annotated[bytes, msgspec.Meta(max_length=1 << 24)]
"""Ciphertexts of the features of an image."""

Outputs = Annotated[bytes, msgspec.Meta(max_length=1 << 30)]
"""Ciphertexts of the outputs for an image."""


class ServiceDescription(Message, frozen=True, tag="encrypted-service"):
    """Description of the model that is served, which is public.

    Attributes:
        scheme: Name of the parameters of the encryption, `scheme.NAME`.
        model: SHA-256 of the public description of the model.
        features: D, the number of features of an image.
        classes: K, the number of outputs.
        bias: The bias of each output of a head that divides by a norm. It is empty for a linear
            head, whose answers contain the bias.
        probe: Features of a fixed synthetic image, D numbers in `float32`. The clinic's features of
            that image must be close to them.
        seed: Seed of the uniform part of the clinic's public key.
    """

    scheme: Annotated[str, msgspec.Meta(max_length=64)]
    model: Digest
    features: Annotated[int, msgspec.Meta(ge=1, le=MAX_FEATURES)]
    classes: Annotated[int, msgspec.Meta(ge=1, le=MAX_CLASSES)]
    bias: Annotated[list[float], msgspec.Meta(max_length=MAX_CLASSES)]
    probe: Annotated[bytes, msgspec.Meta(max_length=4 * MAX_FEATURES)]
    seed: Digest


class EncryptedQuery(Message, frozen=True, tag="encrypted-query"):
    """Encrypted features of some images.

    Attributes:
        model: SHA-256 of the public description of the model.
        seed: The seed of the description to which this is the answer.
        key: The other part of the clinic's public key.
        images: Ciphertexts of each image's features.
    """

    model: Digest
    seed: Digest
    key: Annotated[bytes, msgspec.Meta(max_length=MAX_KEY_BYTES)]
    images: Annotated[list[Ciphertexts], msgspec.Meta(min_length=1, max_length=MAX_IMAGES)]


class EncryptedAnswer(Message, frozen=True, tag="encrypted-answer"):
    """Encrypted outputs of the model.

    Attributes:
        outputs: For each image, one ciphertext of a number for each output. After a head that
            divides by a norm, one more for the square of the norm.
    """

    outputs: Annotated[list[Outputs], msgspec.Meta(min_length=1, max_length=MAX_IMAGES)]


class EncryptedRefusal(Message, frozen=True, tag="encrypted-refusal"):
    """Sentence that says why a query has no answer."""

    reason: Annotated[str, msgspec.Meta(max_length=400)]
