"""Shamir's secret sharing of 32-byte secrets over a prime field (Shamir 1979).

A secret is the value at zero of a random polynomial of degree t - 1.  A share is the polynomial's
value at the holder's place.  Any t shares determine the polynomial.  Any t - 1 shares fit every
secret equally well.
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cohortium.plugin import KeyStream, SiteId

PRIME = 2**256 + 297
"""The least prime above every 32-byte number."""

SECRET_BYTES = 32
SHARE_BYTES = 33


def split(
    secret: bytes, holders: Iterable[SiteId], *, threshold: int, stream: KeyStream
) -> dict[SiteId, bytes]:
    """Return a share of `secret` for each of `holders`.

    Guarantees:
        Any `threshold` of them recover it.  Fewer are uniform and independent of it, if the stream
        is.
    """
    higher = [stream.below(PRIME) for _ in range(threshold - 1)]
    polynomial = [*higher, int.from_bytes(secret, "big")]
    return {
        holder: _at(polynomial, _place(holder)).to_bytes(SHARE_BYTES, "big") for holder in holders
    }


@frozen
class LagrangeInterpolation:
    """Interpolation from the shares of one set of holders.

    It is made once and used for many secrets.
    """

    holders: tuple[SiteId, ...]
    _weights: tuple[int, ...] = field(init=False, repr=False)

    @_weights.default
    def _lagrange(self) -> tuple[int, ...]:
        """Return the values at zero of the Lagrange basis.

        These are Π x / (x - x_i) over the other holders' x.
        """
        places = [_place(holder) for holder in self.holders]
        weights = []
        for place in places:
            above = below = 1
            for other in places:
                if other != place:
                    above = above * other % PRIME
                    below = below * (other - place) % PRIME
            weights.append(above * pow(below, -1, PRIME) % PRIME)
        return tuple(weights)

    def secret(self, shares: Mapping[SiteId, bytes]) -> bytes:
        """Return the secret behind the holders' `shares`.

        Raises:
            ValueError: They belong to no 32-byte secret.
        """
        terms = zip(self._weights, self.holders, strict=True)
        value = sum(weight * int.from_bytes(shares[holder], "big") for weight, holder in terms)
        value %= PRIME
        if value >> (8 * SECRET_BYTES):
            raise ValueError("the shares belong to no 32-byte secret.")
        return value.to_bytes(SECRET_BYTES, "big")


def _place(holder: SiteId) -> int:
    # Site 0 must not hold the polynomial's value at zero, which is the secret.
    return holder + 1


def _at(polynomial: Iterable[int], place: int) -> int:
    """Evaluate by Horner's rule, highest coefficient first."""
    # Places are small, so one reduction at the end is faster than one at each step.
    return reduce(lambda value, coefficient: value * place + coefficient, polynomial, 0) % PRIME
