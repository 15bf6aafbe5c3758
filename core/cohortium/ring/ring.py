"""Integers modulo a power of two, in which releases are summed exactly.

Sums are exact in any order, and under masks. A real vector enters by `FixedPoint.encode` and leaves
by `FixedPoint.decode`. Addition is modular, so a sum is right if the *true* sum fits, even if
intermediate sums wrapped.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from attrs import field, frozen
from attrs.validators import ge, le

from cohortium.errors import MessageError, RefusalCode, RefusalError
from cohortium.ring import packing

if TYPE_CHECKING:
    from numpy.typing import NDArray

Words: TypeAlias = "NDArray[np.unsignedinteger[Any]]"
"""Ring elements: `uint32` up to 32 bits, else `uint64`.

Bits above the ring's are noise.
"""

PACK_BLOCK = 1 << 18
"""Number of values that are packed together.

It is part of the wire format.
"""

_TOGETHER = 1 << 16
"""Number of values encoded or decoded at a time.

The intermediate values then stay in the second-level cache.
"""


@frozen
class RingBlock:
    """Values that are packed together.

    Attributes:
        number: Number of the block, from 0.
        values: Their positions in a vector.
        packed: Their positions in the packed bytes.
    """

    number: int
    values: slice
    packed: slice


@frozen
class Ring:
    """The integers modulo 2**bits.

    Examples:
        >>> Ring(27).bytes_for(4_802_120) / 4_802_120 * 8 < 27.01
        True

    Attributes:
        bits: Number of bits of an element, from 1 to 64.
    """

    bits: int = field(validator=[ge(1), le(64)])

    @property
    def dtype(self) -> np.dtype[np.uint32] | np.dtype[np.uint64]:
        """The little-endian word of one element."""
        return np.dtype("<u4") if self.bits <= 32 else np.dtype("<u8")  # noqa: PLR2004

    @property
    def lanes(self) -> int:
        """Bits of a word, and also the number of lanes."""
        return 8 * self.dtype.itemsize

    def zeros(self, length: int) -> Words:
        """Return `length` zero elements."""
        return np.zeros(length, dtype=self.dtype)

    def encode_signed(self, integers: NDArray[np.int64]) -> Words:
        """Return signed `integers` as elements: two's complement, wrapped."""
        return integers.astype(self.dtype)

    def signed(self, words: Words) -> NDArray[np.int64]:
        """Return the representatives of `words` in [-2**(bits-1), 2**(bits-1))."""
        spare = np.int64(64 - self.bits)
        shifted: NDArray[np.int64] = words.astype(np.int64) << spare
        shifted >>= spare
        return shifted

    def bytes_for(self, length: int) -> int:
        """Return the number of bytes into which `pack` turns `length` elements."""
        pieces = self.pieces(length)
        return pieces[-1].packed.stop if pieces else 0

    def pieces(self, length: int) -> list[RingBlock]:
        """Return the blocks in which `length` elements are packed, in order."""
        pieces, end = list[RingBlock](), 0
        for number, start in enumerate(range(0, length, PACK_BLOCK)):
            stop = min(length, start + PACK_BLOCK)
            begin, end = end, end + self._lane(stop - start) * self.bits * self.dtype.itemsize
            pieces.append(RingBlock(number, slice(start, stop), slice(begin, end)))
        return pieces

    def pack(self, words: Words) -> bytes:
        """Return the elements `words` as `bits` bits each.

        The method splits the values into blocks of 262,144. It divides a block into as many equal
        lanes as a word has bits, and pads the last lane with zeros. The module `packing` describes
        the packing of the lanes.
        """
        out = bytearray(self.bytes_for(len(words)))
        for piece in self.pieces(len(words)):
            self.pack_piece(words[piece.values], memoryview(out)[piece.packed])
        return bytes(out)

    def pack_piece(self, words: Words, out: memoryview) -> None:
        """Pack `words`, the elements of one block, into `out`.

        The bytes `out` are the block's place, still all zero.
        """
        lane = self._lane(len(words))
        if len(words) != lane * self.lanes:
            words = np.concatenate([words, self.zeros(lane * self.lanes - len(words))])
        rows = cast("Words", np.frombuffer(out, dtype=self.dtype)).reshape(self.bits, lane)
        packing.pack(words.reshape(self.lanes, lane), rows, self._runs)

    def unpack(self, data: bytes | memoryview, length: int) -> Words:
        """Return the `length` elements that `pack` turned into `data`.

        Raises:
            MessageError: `data` has not exactly the length that `length` elements take.
        """
        words = self.zeros(length)
        self.add(data, words)
        return np.bitwise_and(words, self._low, out=words)

    def add(self, data: bytes | memoryview, total: Words) -> None:
        """Add the elements that `pack` turned into `data` to `total`, in place.

        Raises:
            MessageError: `data` has not exactly the length that so many elements take. In that
                case, nothing has been added.
        """
        self.require_length(data, len(total))
        for piece in self.pieces(len(total)):
            self.add_piece(memoryview(data)[piece.packed], total[piece.values])

    def add_piece(self, data: memoryview, total: Words) -> None:
        """Add `data`, one packed block, to its elements `total`, in place."""
        lane = self._lane(len(total))
        # In a message the words may begin at any byte, at which NumPy processes them slowly.
        words = np.require(np.frombuffer(data, dtype=self.dtype), requirements="A")
        rows = cast("Words", words).reshape(self.bits, lane)
        if len(total) == lane * self.lanes and total.flags.c_contiguous:
            packing.add_packed(rows, total.reshape(self.lanes, lane), self._runs)
        else:
            padded = self.zeros(lane * self.lanes)
            packing.add_packed(rows, padded.reshape(self.lanes, lane), self._runs)
            np.add(total, padded[: len(total)], out=total)

    def require_length(self, data: bytes | memoryview, length: int) -> None:
        """Refuse `data` that cannot be `length` packed elements.

        Raises:
            MessageError: `data` has another length.
        """
        if len(data) != self.bytes_for(length):
            raise MessageError(
                f"a vector of {length} elements of {self.bits} bits takes "
                f"{self.bytes_for(length)} bytes, but {len(data)} came."
            )

    @cached_property
    def _runs(self) -> tuple[packing.LaneRun, ...]:
        return packing.runs(self.bits, self.dtype)

    @property
    def _low(self) -> np.unsignedinteger[Any]:
        return self.dtype.type((1 << self.bits) - 1)

    def _lane(self, count: int) -> int:
        return -(-count // self.lanes)


@frozen(eq=False)
class RingVector:
    """Release of one site.

    Attributes:
        ring: Ring of the sum.
        words: Elements of the release, shape (length,).
    """

    ring: Ring
    words: Words = field(repr=False)


@frozen(eq=False)
class RingSum:
    """Sum of releases with its contributors, which the coordinator learns.

    Attributes:
        ring: Ring of the sum.
        words: The sum's elements, shape (length,).
        contributors: Numbers of the sites in the sum, ascending.
    """

    ring: Ring
    words: Words = field(repr=False)
    contributors: tuple[int, ...]


@frozen
class FixedPoint:
    """Real numbers as multiples of `step` in a ring.

    Attributes:
        ring: A ring wide enough for the sum of all that will be added.
        step: The real value of the integer 1. The error of encoding is at most half of it.
    """

    ring: Ring
    step: float

    @classmethod
    def fitting(cls, largest: float, *, step: float, terms: int = 1) -> FixedPoint:
        """Return the narrowest ring in which every sum up to `largest` fits.

        Args:
            largest: Magnitude of a sum.
            step: The real value of the integer 1.
            terms: Number of encoded values in a sum, each with an error of half a step at most.

        Raises:
            ValueError: The ring would need more than 64 bits.
        """
        levels = int(largest / step) + 1 + -(-terms // 2)
        bits = levels.bit_length() + 1
        if bits > 64:  # noqa: PLR2004 - the widest word
            raise ValueError(f"sums up to {largest:g} in steps of {step:g} need {bits} bits.")
        return cls(Ring(bits), step)

    def encode(
        self, values: NDArray[np.floating], *, scale: float = 1.0, out: Words | None = None
    ) -> Words:
        """Return real `values`, times `scale`, as elements of the nearest step.

        Args:
            values: Real values, shape (n,). The method makes no copy of them as a whole.
            scale: A factor, applied in double precision.
            out: Array for the elements, shape (n,), or None for a new array.

        Raises:
            RefusalError: A value is not finite, or would wrap in the ring by itself.
        """
        words = np.empty(values.shape, dtype=self.ring.dtype) if out is None else out
        half = 2.0 ** (self.ring.bits - 1)
        for start in range(0, len(values), _TOGETHER):
            piece = slice(start, start + _TOGETHER)
            scaled = np.multiply(values[piece], scale, dtype=np.float64)
            np.divide(scaled, self.step, out=scaled)
            np.rint(scaled, out=scaled)
            # NaN is in no range. The highest integer is excluded, together with the values beyond
            # it.
            if len(scaled) and not (-half <= scaled.min() and scaled.max() < half):
                raise RefusalError(
                    RefusalCode.OUT_OF_RANGE,
                    f"a value of its release is not finite, or beyond {half * self.step:g}, where "
                    "it would wrap.",
                )
            words[piece] = scaled.astype(np.int64)
        return words

    def decode(self, words: Words) -> NDArray[np.float64]:
        """Return the elements `words` as real numbers, of the same shape."""
        values = np.empty(words.shape)
        for start in range(0, len(words), _TOGETHER):
            piece = slice(start, start + _TOGETHER)
            np.multiply(self.ring.signed(words[piece]), self.step, out=values[piece])
        return values

    def mean(self, words: Words, count: float) -> NDArray[np.float32]:
        """Return the values in `words` over `count`.

        The method divides in double precision and then rounds.
        """
        values = np.empty(words.shape, dtype=np.float32)
        for start in range(0, len(words), _TOGETHER):
            piece = slice(start, start + _TOGETHER)
            values[piece] = self.decode(words[piece]) / count
        return values
