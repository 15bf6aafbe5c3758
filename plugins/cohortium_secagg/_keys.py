"""Key agreement, authenticated encryption, and tags.

X25519 (RFC 7748), HKDF-SHA256 (RFC 5869), ChaCha20-Poly1305 and Poly1305 alone (RFC 8439).
"""

from __future__ import annotations

import hmac
from typing import TypeAlias
from weakref import WeakValueDictionary

from attrs import field, frozen
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.poly1305 import Poly1305

from cohortium.plugin import RefusalError
from cohortium_secagg._codes import SecAggRefusalCode

KEY_BYTES = 32
TAG_BYTES = 16

_NONCE = bytes(12)

_NO_SALT = bytes(32)
"""Salt of HKDF where there is none (RFC 5869, section 2.2)."""


class Agreements(dict[bytes, bytes]):
    """Shared secrets of one key pair, by the other pair's public key."""


KnownAgreements: TypeAlias = WeakValueDictionary[bytes, Agreements]
"""Agreements of the key pairs in this process, by public key, while the pairs exist."""


@frozen(eq=False)
class KeyPair:
    """An X25519 key pair.  Any 32 bytes are a private key.

    The shared secret with another pair is computed once, for all its uses.  Computing it takes ten
    times as long as deriving a key from it.

    Guarantees:
        The shared secrets are dropped with the pair, also where `known` lists them.

    Attributes:
        private: The private key.
        known: Agreements of all pairs in this process.  In a simulation, both ends of an
            agreement are among them.  Then the first to compute it notes it for the other.
        public: Public key, with which others agree on a key with this pair.
    """

    private: bytes = field(repr=False)
    known: KnownAgreements = field(factory=WeakValueDictionary, repr=False)
    _key: X25519PrivateKey = field(init=False, repr=False)
    public: bytes = field(init=False, repr=False)
    _common: Agreements = field(factory=Agreements, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        """List this pair's agreements."""
        self.known[self.public] = self._common

    @_key.default
    def _loaded(self) -> X25519PrivateKey:
        return X25519PrivateKey.from_private_bytes(self.private)

    @public.default
    def _derived(self) -> bytes:
        return self._key.public_key().public_bytes_raw()

    def agree(self, public: bytes, label: bytes) -> bytes:
        """Derive the 32-byte key for `label` that only both owners can derive.

        The owners are those of this pair and of `public`.

        Raises:
            RefusalError: `public` is of small order, so the key would be the same for everyone.
        """
        return HKDFExpand(SHA256(), length=KEY_BYTES, info=label).derive(self._common_with(public))

    def can_agree(self, public: bytes) -> bool:
        """Return whether `public` is not of small order.

        With a key of small order, every agreement gives zero.
        """
        try:
            self._common_with(public)
        except RefusalError:
            return False
        return True

    def _common_with(self, public: bytes) -> bytes:
        """Return the first half of HKDF, which is the same for every label."""
        if public not in self._common:
            try:
                shared = self._key.exchange(X25519PublicKey.from_public_bytes(public))
            except ValueError:
                raise RefusalError(
                    SecAggRefusalCode.SMALL_ORDER, "a public key is of small order."
                ) from None
            self._common[public] = hmac.digest(_NO_SALT, shared, "sha256")
            other = self.known.get(public)
            if other is not None:
                other[self.public] = self._common[public]
        return self._common[public]


def seal(key: bytes, plain: bytes, *, bound_to: bytes) -> bytes:
    """Encrypt `plain`.

    The nonce is fixed, so use each `key` for one message only.
    """
    return ChaCha20Poly1305(key).encrypt(_NONCE, plain, bound_to)


def unseal(key: bytes, sealed: bytes, *, bound_to: bytes) -> bytes:
    """Decrypt a text that was sealed with `key` and `bound_to`.

    Raises:
        RefusalError: It was not, or has been changed since.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, sealed, bound_to)
    except InvalidTag:
        raise RefusalError(
            SecAggRefusalCode.SEALED, "an encrypted share does not authenticate."
        ) from None


def tag(key: bytes, data: memoryview) -> bytes:
    """Return a tag that shows that the author of `data` knows `key`.

    Use each key only once.
    """
    return Poly1305.generate_tag(key, data)


def verify_tag(key: bytes, data: memoryview, tag: bytes) -> bool:
    """Return whether `tag` was made with `key` for exactly these `data`."""
    try:
        Poly1305.verify_tag(key, data, tag)
    except InvalidSignature:
        return False
    return True
