"""The two parties of encrypted inference: a clinic's key, and the owner's linear layer.

The clinic has features x, encrypted in slots. The owner has weights W, shape (K, D), and a bias b.

    clinic   s ternary, a from a public seed; b' = -a·s + e        b', Enc(x) by s  ────►
    owner    for each output k:  Enc(x)·W_k + Enc_b'(0)            coefficients (c0, c1)
             c0[0] + bias + flooding, c1                                            ────►
    clinic   c0[0] + (c1·s)[0]  =  2/N · the sum of the slots of x·W_k

A sum of real slots is N/2 times the constant coefficient. So no slot has to be rotated, and no
evaluation key exists. The other coefficients of c0 would show products x_i·W_ki, and never leave
the owner. Chen et al. 2021 (eprint 2020/015) call this the extraction of an LWE sample.

Guarantees:
    To the owner, a query is a ciphertext under the clinic's key, a public key and the number of
    images. The features are hidden by the hardness of ring learning with errors. No answer to the
    owner depends on a decryption, so the attack of Li and Micciancio 2021 has nothing to read.

    To a clinic that follows the protocol, an answer is a function of W·x + b up to a statistical
    distance of about 2⁻⁴⁰ and the hardness of ring learning with errors. The second component is
    masked by a fresh encryption of zero under a key whose uniform part no party chooses. The noise
    of the one remaining coefficient is flooded by a uniform number 2⁴⁰ times as large as its bound.

    A clinic that deviates learns, of each output and each query, at most one integer modulo the
    ciphertext's modulus: 120 bits. It may choose which linear function of the encoded weights that
    integer is. This assumes that learning with errors stays hard if one inner product of its secret
    with a chosen vector is known, since the clinic chooses b'.
"""

from __future__ import annotations

import math
import secrets
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from attrs import field, frozen

from cohortium.errors import DataError, MessageError, RequestError
from cohortium.inference.encrypted.scheme import DEGREE, LEVELS, SLOTS, WORD, Scheme, encode

if TYPE_CHECKING:
    from numpy.typing import NDArray

INPUT_BITS: Final = 84
"""Logarithm of the scale of features."""

WEIGHT_BITS: Final = 28
"""Logarithm of the scale of weights."""

SCALE: Final = 2.0 ** (INPUT_BITS + WEIGHT_BITS)
"""Scale of an output."""

FLOODING_BITS: Final = 40
"""Logarithm of the ratio of the flooding to the noise that it hides."""

MAX_NORM: Final = 2.0**10
"""Largest norm of an image's features."""

MAX_WEIGHT_NORM: Final = 2.0**8
"""Largest norm of the weights of an output. With both bounds no output exceeds the modulus."""

MAX_BIAS: Final = 2.0**17
"""Largest absolute bias of an output, which leaves room for it in the modulus."""

_NOISE_FACTOR: Final = 32
"""Bound of the noise in units of the weights' scaled norm.

Fresh noise is at most 21 in each coefficient. The norm of a polynomial is √(2/N) times that of its
slots.
"""

_IMAGE_SHAPE = (2, LEVELS, DEGREE)
_KEY_SHAPE = (LEVELS + 1, DEGREE)

KEY_BYTES: Final = WORD * math.prod(_KEY_SHAPE)
"""Size of a clinic's public key."""

OUTPUT_BYTES: Final = WORD * LEVELS * (DEGREE + 1)
"""Size of an encrypted output."""


def image_bytes(features: int) -> int:
    """Return the size of an image's ciphertexts."""
    return _chunks(features) * WORD * math.prod(_IMAGE_SHAPE)


def _chunks(features: int) -> int:
    return -(-features // SLOTS)


@frozen(eq=False)
class ClinicKey:
    """A clinic's secret key, drawn anew for each service and process.

    Attributes:
        public: The part of the public key that the owner receives.
    """

    public: bytes = field(repr=False)
    _scheme: Scheme = field(repr=False)
    _encryptor: Any = field(repr=False)
    _decryptor: Any = field(repr=False)

    @classmethod
    def draw(cls, scheme: Scheme, seed: bytes) -> ClinicKey:
        """Draw a key from the operating system's generator.

        Args:
            scheme: The library.
            seed: Public seed of the uniform part of the public key.
        """
        api, context = scheme.api, scheme.context
        generator = api.KeyGenerator(context)
        secret = generator.secret_key()
        drawn = api.PublicKey()
        generator.create_public_key(drawn)
        # The library's key is (-a'·s + e, a'). With the seed's a in place of a' it becomes
        # (-a·s + e, a), with the library's noise.
        first, second = scheme.polynomials(drawn.data(), 0, 2, LEVELS + 1).astype(object)
        values = scheme.polynomials(secret.data(), 0, 1, LEVELS + 1)[0].astype(object)
        uniform = scheme.uniform(seed).astype(object)
        primes = np.array(scheme.primes, object)[:, None]
        public = (first + (second - uniform) * values) % primes
        encryptor = api.Encryptor(context, secret)
        return cls(
            encode(public.astype(np.uint64)), scheme, encryptor, api.Decryptor(context, secret)
        )

    def encrypt(self, features: NDArray[np.float64]) -> bytes:
        """Return ciphertexts of the features of an image, shape (D,).

        Raises:
            DataError: They are not finite, or their norm is above `MAX_NORM`.
        """
        if not np.linalg.norm(features) <= MAX_NORM:
            raise DataError(
                f"the features of an image have a norm above {MAX_NORM:g}, or are not finite; "
                "encrypted inference needs a model with a smaller norm."
            )
        api, parts = self._scheme.api, []
        encoder = api.CKKSEncoder(self._scheme.context)
        for start in range(0, len(features), SLOTS):
            plain, found = api.Plaintext(), api.Ciphertext()
            encoder.encode(features[start : start + SLOTS].tolist(), 2.0**INPUT_BITS, plain)
            self._encryptor.encrypt_symmetric(plain, found)
            parts.append(encode(self._scheme.polynomials(found, 0, 2, LEVELS)))
        return b"".join(parts)

    def decrypt(self, output: bytes, classes: int) -> NDArray[np.float64]:
        """Return the outputs for an image, shape (K,).

        Raises:
            MessageError: The bytes are no `classes` ciphertexts.
        """
        if len(output) != classes * OUTPUT_BYTES:
            raise MessageError(f"an answer must have {classes * OUTPUT_BYTES} bytes for an image.")
        found = []
        for start in range(0, len(output), OUTPUT_BYTES):
            data = output[start : start + OUTPUT_BYTES]
            cut = WORD * LEVELS
            constant = self._scheme.decode(data[:cut], (LEVELS, 1), "an output")[:, 0]
            mask = self._scheme.decode(data[cut:], (LEVELS, DEGREE), "an output")
            found.append(self._decrypt_one(constant, mask))
        return np.array(found)

    def _decrypt_one(self, constant: NDArray[np.uint64], mask: NDArray[np.uint64]) -> float:
        scheme = self._scheme
        if not mask.any():
            raise MessageError("an output is not encrypted.")
        plain = scheme.api.Plaintext()
        self._decryptor.decrypt(scheme.short_ciphertext(constant, mask, SCALE), plain)
        # The values of a polynomial at all N roots add up to N times its constant coefficient.
        values = scheme.polynomials(plain, 0, 1, LEVELS)[0]
        number = 0
        for row, prime in zip(values.tolist(), scheme.primes, strict=False):
            other = scheme.modulus // prime
            number += sum(row) * pow(DEGREE, -1, prime) % prime * other * pow(other, -1, prime)
        number %= scheme.modulus
        if number > scheme.modulus // 2:
            number -= scheme.modulus
        return number / SCALE * SLOTS


@frozen(eq=False)
class EncryptedHead:
    """A linear layer that answers encrypted queries.

    Attributes:
        features: D.
        classes: K.
        seed: Public seed of the uniform part of the clinics' keys.
    """

    features: int
    classes: int
    seed: bytes
    _scheme: Scheme = field(repr=False)
    _weights: list[list[Any]] = field(repr=False)
    _bias: list[int] = field(repr=False)
    _flooding: int = field(repr=False)
    _uniform: NDArray[np.uint64] = field(repr=False)

    @classmethod
    def of(
        cls, scheme: Scheme, weights: NDArray[np.float64], bias: NDArray[np.float64]
    ) -> EncryptedHead:
        """Prepare a layer.

        Args:
            scheme: The library.
            weights: Shape (K, D).
            bias: Shape (K,).

        Raises:
            RequestError: The weights are too large for the parameters of the encryption.
        """
        norm = float(np.linalg.norm(weights, axis=1).max())
        largest_bias = float(np.abs(bias).max())
        if not norm <= MAX_WEIGHT_NORM:
            raise RequestError(
                f"the weights of a class have a norm of {norm:g}, and encrypted inference takes "
                f"{MAX_WEIGHT_NORM:g}; train with a larger norm of the features."
            )
        if not largest_bias <= MAX_BIAS:
            raise RequestError(
                f"the bias of a class is {largest_bias:g}, and encrypted inference takes "
                f"{MAX_BIAS:g}; train again, with a smaller learning rate."
            )
        classes, features = weights.shape
        encoder = scheme.api.CKKSEncoder(scheme.context)
        rows: list[list[Any]] = []
        for row in weights:
            rows.append([])
            for start in range(0, features, SLOTS):
                part = row[start : start + SLOTS]
                plain = scheme.api.Plaintext()
                encoder.encode(part.tolist(), 2.0**WEIGHT_BITS, plain)
                rows[-1].append(None if plain.is_zero() else plain)
        # The next power of two of the norm, so that the flooding says little about the weights.
        level = math.ceil(math.log2(max(norm, 1.0))) + math.ceil(math.log2(_chunks(features)) / 2)
        flooding = _NOISE_FACTOR << (WEIGHT_BITS + FLOODING_BITS + level)
        seed = secrets.token_bytes(32)
        numbers = [round(float(value) * 2.0**64) for value in bias]
        shift = INPUT_BITS + WEIGHT_BITS - 64
        return cls(
            features=features,
            classes=classes,
            seed=seed,
            scheme=scheme,
            weights=rows,
            bias=[(number << shift) // SLOTS for number in numbers],
            flooding=flooding,
            uniform=scheme.uniform(seed),
        )

    def answer(self, key: bytes, image: bytes) -> bytes:
        """Return the encrypted outputs for an image.

        Args:
            key: `ClinicKey.public`, from a party that may lie.
            image: The result of `ClinicKey.encrypt`, from the same party.

        Raises:
            MessageError: One of them is not of its form.
        """
        scheme = self._scheme
        public = scheme.decode(key, _KEY_SHAPE, "the key")
        shape = (_chunks(self.features), *_IMAGE_SHAPE)
        parts = scheme.decode(image, shape, "an image")
        if not parts[:, 1].any(axis=(1, 2)).all():
            raise MessageError("an image is not encrypted.")
        inputs = [scheme.ciphertext(part, 2.0**INPUT_BITS) for part in parts]
        encryptor = scheme.api.Encryptor(scheme.context, scheme.public_key(public, self._uniform))
        return b"".join(
            self._output(encryptor, inputs, row, bias)
            for row, bias in zip(self._weights, self._bias, strict=True)
        )

    def _output(self, encryptor: Any, inputs: list[Any], row: list[Any], bias: int) -> bytes:
        """Return one output: the coefficients of c1, and the first one of c0."""
        scheme, api = self._scheme, self._scheme.api
        evaluator = api.Evaluator(scheme.context)
        zero, total = api.Plaintext(), api.Ciphertext()
        api.CKKSEncoder(scheme.context).encode(0.0, SCALE, zero)
        encryptor.encrypt(zero, total)
        for part, weights in zip(inputs, row, strict=True):
            if weights is not None:
                product = api.Ciphertext()
                evaluator.multiply_plain(part, weights, product)
                evaluator.add_inplace(total, product)
        evaluator.transform_from_ntt_inplace(total)
        added = bias + secrets.randbelow(2 * self._flooding + 1) - self._flooding
        constant = [
            (total[level * DEGREE] + added) % prime
            for level, prime in enumerate(scheme.primes[:LEVELS])
        ]
        mask = scheme.polynomials(total, 1, 1, LEVELS)
        return encode(np.array(constant, np.uint64)) + encode(mask)
