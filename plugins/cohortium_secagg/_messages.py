"""The requests and their replies.

    AdvertiseKeysRequest → Keys       public keys of this attempt
    ShareKeysRequest     → Shares     the site's secrets in shares, one sealed for each neighbour
    MaskedVectorRequest  → Vector     the masked vector
    UnmaskRequest        → Unmasking  shares that take the masks off the sum

Against a coordinator that lies, there is one exchange more:

    AdvertiseKeysRequest     → SignedKeys
    ShareKeysAmongAllRequest → Shares            all sites are neighbours, and their keys are signed
    MaskedVectorRequest      → Vector
    ConsistencyRequest       → ConsistencyCheck  a signature for one set of survivors
    ConfirmedUnmaskRequest   → Unmasking         once enough have signed

The keys and the shares of the next attempt ride with the last of these (fields `next_…`).  If they
are complete, the next attempt begins with MaskedVectorRequest:

    MaskedVectorRequest                     → Vector     and the public keys of the next attempt
    UnmaskRequest or ConfirmedUnmaskRequest → Unmasking  and its sealed shares

A request that is the same for all sites is the common part.  Any other request is each site's own
part.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from cohortium.plugin import Message
from cohortium_secagg._keys import KEY_BYTES, TAG_BYTES
from cohortium_secagg._shamir import SHARE_BYTES

_MAX_SITES = 1 << 16

Site = Annotated[int, msgspec.Meta(ge=0, lt=_MAX_SITES)]
Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
Key = Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Tag = Annotated[bytes, msgspec.Meta(min_length=TAG_BYTES, max_length=TAG_BYTES)]
Share = Annotated[bytes, msgspec.Meta(min_length=SHARE_BYTES, max_length=SHARE_BYTES)]
Sealed = Annotated[
    bytes,
    msgspec.Meta(min_length=2 * SHARE_BYTES + TAG_BYTES, max_length=2 * SHARE_BYTES + TAG_BYTES),
]
"""A share of a mask seed and one of a mask key, encrypted from one site to another."""

Signature = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
Session = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]

_Bounded = msgspec.Meta(max_length=_MAX_SITES)


class Request(Message, frozen=True):
    """Base of every request, with the attempt it belongs to."""

    attempt: Number


class AdvertiseKeysRequest(Request, frozen=True, tag="advertise-keys-request"):
    """Request to begin an attempt.

    Attributes:
        tagging: A public X25519 key of the coordinator.  Each site agrees with it on the key of its
            vector's tag.
    """

    tagging: Key


class Keys(Message, frozen=True, tag="keys"):
    """A site's public X25519 keys: one for sealed shares, one for masks."""

    sealing: Key
    masking: Key


class SignedKeys(Keys, frozen=True, tag="signed-keys"):
    """A site's public keys, with its signature for this attempt."""

    signature: Signature


class ShareKeysRequest(Request, frozen=True, tag="share-keys-request"):
    """Request to share a site's secrets among itself and these neighbours."""

    neighbours: Annotated[dict[Site, Keys], _Bounded]


class ShareKeysAmongAllRequest(Request, frozen=True, tag="share-keys-among-all-request"):
    """Request to share a site's secrets among all on this roster.

    The site is on the roster itself.
    """

    roster: Annotated[dict[Site, SignedKeys], _Bounded]


class Shares(Message, frozen=True, tag="sealed-shares"):
    """One sealed pair of shares for each neighbour.

    Attributes:
        sealed: Sealed shares by recipient.
        commitment: A hash of the site's mask seed, so that a wrong seed is never taken off a sum.
            (The public masking key does the same for the masking key.)
        seeds: A hash of each shareholder's share of the mask seed.  So a wrong share is known by
            itself.  The others recover the seed.
        keys: A hash of each shareholder's share of the masking key, for the same purpose.
    """

    sealed: Annotated[dict[Site, Sealed], _Bounded]
    commitment: Digest
    seeds: Annotated[dict[Site, Digest], _Bounded]
    keys: Annotated[dict[Site, Digest], _Bounded]


class MaskedVectorRequest(Request, frozen=True, tag="masked-vector-request"):
    """Request for the vector, masked with the neighbours that shared their secrets.

    Attributes:
        sealed: Sealed shares by sender.
        next_tagging: The coordinator's public key for the tags of the next attempt.  With it, the
            request is also one for keys of that attempt.
    """

    sealed: Annotated[dict[Site, Sealed], _Bounded]
    next_tagging: Key | None = None


class Vector(Message, frozen=True, tag="masked-vector"):
    """A masked vector.

    Attributes:
        packed: Elements as `Ring.pack` makes them.
        tag: Tag of `packed`, under a key of this attempt that only the site and the coordinator can
            derive.  A vector that is damaged on its way, replayed or made up drops its site and
            leaves the sum exact.
        next_keys: The site's public keys of the next attempt, if they are asked for.
    """

    packed: memoryview
    tag: Tag
    next_keys: Keys | SignedKeys | None = None


class UnmaskRequest(Request, frozen=True, tag="unmask-request"):
    """Request to open the sum over `survivors`, in rising order.

    A neighbour either survived or did not, so no request can ask for both of its secrets.

    Attributes:
        survivors: Sites of the sum.
        next_neighbours: Keys of the neighbours of the next attempt.  With them, the request is also
            one to share the secrets of that attempt.
    """

    survivors: Annotated[tuple[Site, ...], _Bounded]
    next_neighbours: Annotated[dict[Site, Keys], _Bounded] | None = None


class ConsistencyRequest(Request, frozen=True, tag="consistency-request"):
    """Request to sign for the sum over `survivors`, in rising order.

    The site signs that it opens this sum, and no other.
    """

    survivors: Annotated[tuple[Site, ...], _Bounded]


class ConsistencyCheck(Message, frozen=True, tag="consistency-check"):
    """A site's signature for the survivors that were named to it."""

    signature: Signature


class ConfirmedUnmaskRequest(Request, frozen=True, tag="confirmed-unmask-request"):
    """Request to open the sum that the sites named here signed for.

    Attributes:
        signatures: Signatures by site.
        next_roster: Signed keys of the next attempt.  With them, the request is also one to share
            the secrets of that attempt among all on this roster.
    """

    signatures: Annotated[dict[Site, Signature], _Bounded]
    next_roster: Annotated[dict[Site, SignedKeys], _Bounded] | None = None


class Unmasking(Message, frozen=True, tag="unmasking-shares"):
    """Shares of survivors' mask seeds and of the other neighbours' masking keys.

    Attributes:
        seeds: Shares of mask seeds, by their sites.
        keys: Shares of masking keys, by their sites.
        next_shares: The site's sealed shares of the next attempt, if they are asked for.
    """

    seeds: Annotated[dict[Site, Share], _Bounded]
    keys: Annotated[dict[Site, Share], _Bounded]
    next_shares: Shares | None = None


class CompletedStage(Message, frozen=True, tag="completed-stage"):
    """An entry of a site's journal: a stage not to be repeated."""

    session: Session
    round: Number
    attempt: Number
    what: Literal["masked", "unmasked"]


HONEST_BUT_CURIOUS_REQUESTS: tuple[type[Request], ...] = (
    AdvertiseKeysRequest,
    ShareKeysRequest,
    MaskedVectorRequest,
    UnmaskRequest,
)
"""Requests that a site answers where the coordinator is taken to follow the protocol."""

ACTIVE_REQUESTS: tuple[type[Request], ...] = (
    AdvertiseKeysRequest,
    ShareKeysAmongAllRequest,
    MaskedVectorRequest,
    ConsistencyRequest,
    ConfirmedUnmaskRequest,
)
"""Requests that a site answers where the coordinator may lie."""


def max_message_bytes(entries: int) -> int:
    """Return more bytes than any message with `entries` entries takes, vectors aside."""
    return 512 + 320 * entries
