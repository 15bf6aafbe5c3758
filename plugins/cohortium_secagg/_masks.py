"""Masks: AES-256 key streams, added to ring words and taken off again.

The stream of AES-256 in counter mode masks a vector's piece i.  It starts from the block (i, 2),
with i in its first twelve bytes.  AES-GCM encrypts with the same stream under nonce i (NIST SP
800-38D).  Libraries make that stream faster as AES-GCM than in counter mode, the unused tag
included.
A mask is never held as a whole: it is made in parts that stay in the processor's cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from cohortium.plugin import SiteId
    from cohortium_secagg._keys import KeyPair
    from cohortium_secagg._protocol_parameters import AttemptLabel

    Words = NDArray[np.unsignedinteger[Any]]

_BLOCK = 1 << 19
"""Bytes of each mask made at a time.  Together with their words they stay in the second cache.

A quarter of this is as fast on one thread.  But threads would then compete much more often for the
interpreter's lock.
"""

_ZEROS = bytes(_BLOCK)
"""Input that the cipher turns into key stream."""

_NONCE_BYTES = 12

_WORD = 8
"""Bytes of the widest word.  A buffer holds at least one, even for a vector without elements."""

_TOGETHER = 64
"""Masks taken off in one pass over the words.  More save no time, and each has an open cipher."""


class Mask(NamedTuple):
    """Seed of a key stream, used once, and the mask's sign."""

    seed: bytes
    subtract: bool = False


def pairwise(pair: KeyPair, public: bytes, scope: AttemptLabel, site: SiteId, peer: SiteId) -> Mask:
    """Return the mask of `site` for `peer`.

    It cancels the mask of `peer` for `site`.  `pair` belongs to `site`.

    Raises:
        RefusalError: `public` is of small order.
    """
    label = scope.label("mask", min(site, peer), max(site, peer))
    return Mask(pair.agree(public, label), subtract=site > peer)


def apply(masks: Sequence[Mask], words: Words, *, piece: int = 0) -> None:
    """Apply `masks` to `words` in place, modulo the word's width.

    Every mask covers all the bits of a word, and so of any narrower ring.

    Args:
        masks: Masks in any order.  The order does not matter.
        words: A piece of a vector, as `Ring.pieces` cuts it.
        piece: Its number.
    """
    buffer = bytearray(max(_WORD, min(_BLOCK, words.nbytes)))
    for first in range(0, len(masks), _TOGETHER):
        _apply(masks[first : first + _TOGETHER], words, piece, buffer)


def _apply(masks: Sequence[Mask], words: Words, piece: int, buffer: bytearray) -> None:
    mode = modes.GCM(piece.to_bytes(_NONCE_BYTES, "big"))
    streams = [
        (
            Cipher(algorithms.AES(mask.seed), mode).encryptor().update_into,
            np.subtract if mask.subtract else np.add,
        )
        for mask in masks
    ]
    pad, view, zeros = np.frombuffer(buffer, words.dtype), memoryview(buffer), memoryview(_ZEROS)
    for start in range(0, len(words), len(pad)):
        part = words[start : start + len(pad)]
        for fill, combine in streams:
            fill(zeros[: part.nbytes], view[: part.nbytes])
            combine(part, pad[: len(part)], out=part)
