"""Masks: AES-256-CTR key streams, added to ring words and taken off again.

A mask is never held: it is made in pieces that stay in the processor's cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cohortium.plugin import Stream

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from cohortium.plugin import SiteId
    from cohortium_secagg._keys import KeyPair
    from cohortium_secagg._rules import Scope

    Words = NDArray[np.unsignedinteger[Any]]

_BLOCK = 1 << 18
"""Bytes of each mask made at a time: with the words they meet they stay in the second cache.

Half as many are as fast on one thread, but threads would meet twice as often at the interpreter's
lock.
"""

_WORD = 8
"""Bytes of the widest word: a buffer holds one at least, also for a vector without elements."""

_TOGETHER = 64
"""Masks taken off in one pass over the words: more save no time, and each has its cipher open."""


class Mask(NamedTuple):
    """A key stream's seed, used once, and whether it is added or subtracted."""

    seed: bytes
    subtract: bool = False


def pairwise(pair: KeyPair, public: bytes, scope: Scope, site: SiteId, peer: SiteId) -> Mask:
    """The mask of `site`, whose pair it is, for `peer`; it cancels that of `peer` for `site`.

    Raises:
        RefusalError: `public` is of small order.
    """
    label = scope.label("mask", min(site, peer), max(site, peer))
    return Mask(pair.agree(public, label), subtract=site > peer)


def apply(masks: Sequence[Mask], words: Words, *, start: int = 0) -> None:
    """Apply `masks` to `words` in place, modulo the word's width.

    Every mask covers all the bits of a word, and so of any narrower ring.

    Args:
        masks: In any order, which does not matter.
        words: A vector, or the part of one that begins at element `start`.
        start: A multiple of four.
    """
    for first in range(0, len(masks), _TOGETHER):
        together = masks[first : first + _TOGETHER]
        Streams(together, start * words.itemsize, most=words.nbytes).apply(words)


class Streams:
    """The key streams of masks, applied to one stretch of a vector after another."""

    def __init__(self, masks: Iterable[Mask], start: int = 0, *, most: int = _BLOCK) -> None:
        """Open them all at byte `start`, for stretches of at `most` so many bytes."""
        self._buffer = bytearray(max(_WORD, min(_BLOCK, most)))
        self._streams = [
            (Stream(mask.seed, start=start), np.subtract if mask.subtract else np.add)
            for mask in masks
        ]

    def apply(self, words: Words) -> None:
        """Apply the masks to `words`, the next of the vector, in place."""
        pad = np.frombuffer(self._buffer, dtype=words.dtype)
        view = memoryview(self._buffer)
        for start in range(0, len(words), len(pad)):
            piece = words[start : start + len(pad)]
            for stream, combine in self._streams:
                stream.fill(view[: piece.nbytes])
                combine(piece, pad[: len(piece)], out=piece)
