"""A site's side: it seals seeds for others, and sums its shares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import define, field, frozen
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cohortium.plugin import (
    KeyStream,
    MessageError,
    RefusalCode,
    RefusalError,
    decode_either,
    encode,
)
from cohortium_additive._codes import AdditiveRefusalCode
from cohortium_additive._messages import (
    KEY_BYTES,
    Key,
    KeyRequest,
    Shares,
    SharesRequest,
    SumRequest,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from cohortium.plugin import (
        AggregationConfig,
        Randomness,
        RingVector,
        SiteContext,
        SiteId,
        SiteRequest,
    )

    Words = NDArray[np.unsignedinteger[Any]]

_NONCE = bytes(12)
"""Fixed nonce: every key seals one seed."""

_PIECE = 1 << 18
"""Bytes of a key stream that are made at a time, so that they stay in the processor's cache."""


@define
class Attempt:
    """State of a site in one attempt, of which the sum leaves the number alone.

    Attributes:
        number: Number of the attempt.
        private: Private key of the site, or None after the sum.
        others: The other sites, once they are known.
        keys: Public keys of the others, once they are known.
        given: Seeds that the site has drawn for the others.
        is_over: Whether the site has sent its sum.
    """

    number: int
    private: X25519PrivateKey | None = field(repr=False)
    others: tuple[SiteId, ...] = ()
    keys: tuple[bytes, ...] = ()
    given: tuple[bytes, ...] = field(default=(), repr=False)
    is_over: bool = False


@frozen
class AdditiveSite:
    """One site's session.  See `SiteSession`.

    Guarantees:
        The site answers each request once an attempt, in order.  A request that it refuses changes
        nothing.  So a key seals one seed.
        The site forgets an attempt's secrets with its sum.
    """

    config: AggregationConfig
    site_context: SiteContext
    _attempts: list[Attempt] = field(factory=list, repr=False)

    def handle(self, request: SiteRequest, release: Callable[[], RingVector]) -> bytes:
        """Return a key, sealed seeds, or a sum."""
        message = decode_either(request.broadcast, KeyRequest, SharesRequest, SumRequest)
        if isinstance(message, SumRequest):
            return self._sum(self._current(request), decode_either(request.own, Shares), release)
        if request.own:
            raise MessageError("this request has no part for one site alone.")
        if isinstance(message, KeyRequest):
            return self._begin(request)
        return self._share(self._current(request), message)

    def _begin(self, ask: SiteRequest) -> bytes:
        if self._attempts and ask.attempt <= self._attempts[-1].number:
            raise RefusalError(RefusalCode.OUT_OF_ORDER, "this attempt has started already.")
        secret = self._secret(ask.attempt).secret_bytes(KEY_BYTES, "key")
        self._attempts[:] = [Attempt(ask.attempt, X25519PrivateKey.from_private_bytes(secret))]
        return encode(Key(public=self._public))

    def _share(self, now: Attempt, request: SharesRequest) -> bytes:
        sites, me = request.sites, self.site_context.site
        if now.given or now.is_over:
            raise RefusalError(
                RefusalCode.OUT_OF_ORDER, "seeds have been shared in this attempt already."
            )
        if len(sites) != len(request.keys) or list(sites) != sorted(set(sites)):
            raise MessageError("sites must be ascending, with one key each.")
        if me not in sites or request.keys[sites.index(me)] != self._public:
            raise RefusalError(AdditiveRefusalCode.KEYS, "its own key is not the one that it sent.")
        if len(sites) != self.config.federation_spec.cohort_size:
            raise RefusalError(
                AdditiveRefusalCode.TOO_FEW,
                f"it sums over {self.config.federation_spec.cohort_size} sites, not {len(sites)}.",
            )
        others = tuple(site for site in sites if site != me)
        keys = tuple(key for site, key in zip(sites, request.keys, strict=True) if site != me)
        secret = self._secret(now.number)
        given = tuple(secret.secret_bytes(KEY_BYTES, "seed", other) for other in others)
        sealed = tuple(
            ChaCha20Poly1305(self._key(now, key, me, other)).encrypt(_NONCE, seed, None)
            for other, key, seed in zip(others, keys, given, strict=True)
        )
        now.others, now.keys, now.given = others, keys, given
        return encode(Shares(sealed=sealed))

    def _sum(self, now: Attempt, shares: Shares, vector: Callable[[], RingVector]) -> bytes:
        if not now.given or now.is_over:
            raise RefusalError(RefusalCode.OUT_OF_ORDER, "a sum is due once, after the seeds.")
        if len(shares.sealed) != len(now.others):
            raise MessageError(f"{len(now.others)} sealed seeds are due, not {len(shares.sealed)}.")
        me = self.site_context.site
        taken = []
        for other, key, sealed in zip(now.others, now.keys, shares.sealed, strict=True):
            try:
                cipher = ChaCha20Poly1305(self._key(now, key, other, me))
                taken.append(cipher.decrypt(_NONCE, sealed, None))
            except InvalidTag:
                raise RefusalError(
                    AdditiveRefusalCode.SEALED, f"the seed from site {other} does not authenticate."
                ) from None
        given, now.is_over = now.given, True
        now.private, now.others, now.keys, now.given = None, (), (), ()
        words = vector().words.copy()
        _combine(words, taken, given)
        return self.config.ring.pack(words)

    def _current(self, ask: SiteRequest) -> Attempt:
        if not self._attempts or self._attempts[-1].number != ask.attempt:
            raise RefusalError(RefusalCode.OUT_OF_ORDER, "the attempt has not started here.")
        return self._attempts[-1]

    @property
    def _public(self) -> bytes:
        private = self._attempts[-1].private
        assert private is not None, "an attempt that is over has answered before"
        return private.public_key().public_bytes_raw()

    def _secret(self, attempt: int) -> Randomness:
        return self.site_context.secret.derive("additive", attempt)

    def _key(self, now: Attempt, public: bytes, sender: SiteId, receiver: SiteId) -> bytes:
        """Derive the key that seals one seed.

        It is bound to the run, the attempt and the direction.
        """
        assert now.private is not None, "an attempt that is over has answered before"
        try:
            common = now.private.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError:
            raise RefusalError(
                AdditiveRefusalCode.SMALL_ORDER, "a public key is of small order."
            ) from None
        numbers = b"".join(n.to_bytes(8, "big") for n in (now.number, sender, receiver))
        info = b"cohortium additive seed" + self.config.session + numbers
        return HKDF(SHA256(), length=KEY_BYTES, salt=None, info=info).derive(common)


def _combine(words: Words, taken: Sequence[bytes], given: Sequence[bytes]) -> None:
    """Add the key streams of `taken` to `words`, and subtract `given`'s.

    Both are done in place.
    """
    buffer = bytearray(min(_PIECE, max(words.nbytes, words.itemsize)))
    pad, view = np.frombuffer(buffer, dtype=words.dtype), memoryview(buffer)
    streams: list[tuple[KeyStream, np.ufunc]] = [
        *((KeyStream(seed), np.add) for seed in taken),
        *((KeyStream(seed), np.subtract) for seed in given),
    ]
    for start in range(0, len(words), len(pad)):
        piece = words[start : start + len(pad)]
        for stream, combine in streams:
            stream.fill(view[: piece.nbytes])
            combine(piece, pad[: len(piece)], out=piece)
