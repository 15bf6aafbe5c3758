"""The three exchanges, in order.

    KeyRequest    → Key      a public key for this attempt
    SharesRequest → Shares   a seed for each other site, sealed
    SumRequest    → (bytes)  the packed sum of the shares that the site holds

The common part holds the request.  The shares for a site are its own part.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from cohortium.plugin import Message

KEY_BYTES = 32
SEALED_BYTES = KEY_BYTES + 16
"""Bytes of a seed and its tag."""

MAX_SITES = 1 << 12

PublicKey = Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
Sealed = Annotated[bytes, msgspec.Meta(min_length=SEALED_BYTES, max_length=SEALED_BYTES)]
Bounded = msgspec.Meta(max_length=MAX_SITES)


class KeyRequest(Message, frozen=True, tag="key-request"):
    """Request to begin an attempt."""


class Key(Message, frozen=True, tag="key"):
    """A site's X25519 key for this attempt."""

    public: PublicKey


class SharesRequest(Message, frozen=True, tag="shares-request"):
    """Request to share among these sites, ascending, with these keys."""

    sites: Annotated[tuple[Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)], ...], Bounded]
    keys: Annotated[tuple[PublicKey, ...], Bounded]


class Shares(Message, frozen=True, tag="sealed-seeds"):
    """A sealed seed for, or from, each other site, in their order."""

    sealed: Annotated[tuple[Sealed, ...], Bounded]


class SumRequest(Message, frozen=True, tag="sum-request"):
    """Request to train, and to add up the shares held."""
