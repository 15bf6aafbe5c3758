"""Integers modulo a power of two, in which releases are summed: exactly, in any order, under masks.

A real vector enters by `FixedPoint.encode` and leaves by `FixedPoint.decode`.
Addition is modular, so a sum is right whenever the *true* sum fits, whatever wrapped on the way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from attrs import field, frozen
from attrs.validators import ge, le

from cohortium.errors import MessageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Words: TypeAlias = NDArray[np.unsignedinteger[Any]]
    """Ring elements: `uint32` up to 32 bits, else `uint64`; bits above the ring's are noise."""

PACK_BLOCK = 1 << 18
"""Values that are packed together; part of the wire format."""


@frozen
class Ring:
    """The integers modulo 2**bits.

    >>> Ring(27).bytes_for(4_802_120) / 4_802_120 * 8 < 27.01
    True
    """

    bits: int = field(validator=[ge(1), le(64)])

    @property
    def word(self) -> np.dtype[np.uint32] | np.dtype[np.uint64]:
        """The little-endian word that holds one element."""
        return np.dtype("<u4") if self.bits <= 32 else np.dtype("<u8")  # noqa: PLR2004

    @property
    def lanes(self) -> int:
        """Bits of a word, which is also how many values are packed side by side."""
        return 8 * self.word.itemsize

    def zeros(self, length: int) -> Words:
        """`length` zero elements."""
        return np.zeros(length, dtype=self.word)

    def of(self, integers: NDArray[np.int64]) -> Words:
        """Signed integers as elements: two's complement, wrapped."""
        return integers.astype(self.word)

    def signed(self, words: Words) -> NDArray[np.int64]:
        """The representatives in [-2**(bits-1), 2**(bits-1))."""
        spare = np.int64(64 - self.bits)
        shifted: NDArray[np.int64] = words.astype(np.int64) << spare
        shifted >>= spare
        return shifted

    def bytes_for(self, length: int) -> int:
        """How many bytes `pack` makes of `length` elements."""
        return sum(self._lane_length(n) * self.bits * self.word.itemsize for n in _blocks(length))

    def pack(self, words: Words) -> bytes:
        """Elements as `bits` bits each.

        Values are taken in blocks of 262,144.  A block is cut into as many equal lanes as a word
        has bits (the last one padded with zeros); the lanes lie one above another, so that every
        shift works on a whole lane.
        """
        out = np.empty(self.bytes_for(len(words)) // self.word.itemsize, dtype=self.word)
        position = start = 0
        for count in _blocks(len(words)):
            lane = self._lane_length(count)
            block = words[start : start + count]
            if count != lane * self.lanes:
                block = np.concatenate([block, self.zeros(lane * self.lanes - count)])
            piece = out[position : position + lane * self.bits].reshape(self.bits, lane)
            self._pack_block(block.reshape(self.lanes, lane), piece)
            start += count
            position += piece.size
        return out.tobytes()

    def unpack(self, data: bytes | memoryview, length: int) -> Words:
        """The `length` elements that `pack` turned into `data`.

        Raises:
            MessageError: `data` has not exactly the length that `length` elements take.
        """
        if len(data) != self.bytes_for(length):
            raise MessageError(
                f"a vector of {length} elements of {self.bits} bits takes "
                f"{self.bytes_for(length)} bytes, but {len(data)} came."
            )
        source = np.frombuffer(data, dtype=self.word)
        out = np.empty(length, dtype=self.word)
        position = start = 0
        for count in _blocks(length):
            lane = self._lane_length(count)
            piece = source[position : position + lane * self.bits].reshape(self.bits, lane)
            block = self._unpack_block(cast("Words", piece))
            out[start : start + count] = block.reshape(-1)[:count]
            start += count
            position += piece.size
        return out

    def _lane_length(self, count: int) -> int:
        return -(-count // self.lanes)

    def _pack_block(self, values: Words, out: Words) -> None:
        """Lay the lanes `values` (lanes, n), `bits` bits each, into the words `out` (bits, n)."""
        out[:] = 0
        word = self.word.type
        low = word((1 << self.bits) - 1)
        for lane in range(self.lanes):
            row, shift = divmod(lane * self.bits, self.lanes)
            value = values[lane] & low
            out[row] |= value << word(shift)
            if shift + self.bits > self.lanes:
                out[row + 1] |= value >> word(self.lanes - shift)

    def _unpack_block(self, words: Words) -> Words:
        word = self.word.type
        low = word((1 << self.bits) - 1)
        out = np.empty((self.lanes, words.shape[1]), dtype=self.word)
        for lane in range(self.lanes):
            row, shift = divmod(lane * self.bits, self.lanes)
            np.right_shift(words[row], word(shift), out=out[lane])
            if shift + self.bits > self.lanes:
                out[lane] |= words[row + 1] << word(self.lanes - shift)
            out[lane] &= low
        return out


def _blocks(length: int) -> Iterator[int]:
    for start in range(0, length, PACK_BLOCK):
        yield min(PACK_BLOCK, length - start)


@frozen(eq=False)
class RingVector:
    """What one site releases: elements of a ring, shape (length,)."""

    ring: Ring
    words: Words = field(repr=False)


@frozen(eq=False)
class RingSum:
    """What the coordinator learns: the sum of the releases of `contributors`, and who they were."""

    ring: Ring
    words: Words = field(repr=False)
    contributors: tuple[int, ...]


@frozen
class FixedPoint:
    """Real numbers as multiples of `step` in a ring.

    Attributes:
        ring: Wide enough for the sum of all that will be added.
        step: The real value of the integer 1.  Encoding errs by at most half of it.
    """

    ring: Ring
    step: float

    @classmethod
    def holding(cls, largest: float, *, step: float, terms: int = 1) -> FixedPoint:
        """The narrowest ring in which every sum of magnitude up to `largest` fits.

        Args:
            largest: Magnitude of a sum.
            step: The real value of the integer 1.
            terms: How many encoded values are added up, each off by half a step at most.

        Raises:
            ValueError: That takes more than 64 bits.
        """
        levels = int(largest / step) + 1 + -(-terms // 2)
        bits = levels.bit_length() + 1
        if bits > 64:  # noqa: PLR2004 - the widest word
            raise ValueError(f"sums up to {largest:g} in steps of {step:g} need {bits} bits.")
        return cls(Ring(bits), step)

    def encode(self, values: NDArray[np.floating]) -> Words:
        """Finite real `values` as elements, rounded to the nearest step; they wrap silently."""
        scaled = values.astype(np.float64) / self.step
        return self.ring.of(np.rint(scaled, out=scaled).astype(np.int64))

    def decode(self, words: Words) -> NDArray[np.float64]:
        """Elements as real numbers."""
        return self.ring.signed(words).astype(np.float64) * self.step
