"""Masks: AES-256 key streams, added to ring words and taken off again.

A vector's piece i is masked by the stream of AES-256 in counter mode that starts from the block
(i, 2), i in its first twelve bytes.  That is what AES-GCM enciphers with under nonce i (NIST SP
800-38D), and libraries make it faster as such than in counter mode, the unused tag included.
A mask is never held: it is made in parts that stay in the processor's cache.
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
    from cohortium_secagg._rules import AttemptLabel

    Words = NDArray[np.unsignedinteger[Any]]

_BLOCK = 1 << 19
"""Bytes of each mask made at a time: with the words they meet they stay in the second cache.

A quarter as many are as fast on one thread, but threads would meet so much more often at the
interpreter's lock.
"""

_ZEROS = bytes(_BLOCK)
"""What the cipher turns into key stream."""

_NONCE_BYTES = 12

_WORD = 8
"""Bytes of the widest word: a buffer holds one at least, also for a vector without elements."""

_TOGETHER = 64
"""Masks taken off in one pass over the words: more save no time, and each has its cipher open."""


class Mask(NamedTuple):
    """A key stream's seed, used once, and whether it is added or subtracted."""

    seed: bytes
    subtract: bool = False


def pairwise(pair: KeyPair, public: bytes, scope: AttemptLabel, site: SiteId, peer: SiteId) -> Mask:
    """The mask of `site`, whose pair it is, for `peer`; it cancels that of `peer` for `site`.

    Raises:
        RefusalError: `public` is of small order.
    """
    label = scope.label("mask", min(site, peer), max(site, peer))
    return Mask(pair.agree(public, label), subtract=site > peer)


def apply(masks: Sequence[Mask], words: Words, *, piece: int = 0) -> None:
    """Apply `masks` to `words` in place, modulo the word's width.

    Every mask covers all the bits of a word, and so of any narrower ring.

    Args:
        masks: In any order, which does not matter.
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
