"""Where every random number comes from: public seeds, or a party's secrets.

`Seeds` is the public tree of a run: initial weights, partition, cohorts.
`Randomness` is a party's secret stream: keys, masks, noise, Poisson batches, augmentation.
It is the operating system's, unless a *simulation* asks for repeatable noise, and then it says so.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import numpy as np
from attrs import field, frozen
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

if TYPE_CHECKING:
    from numpy.typing import NDArray

KEY_BYTES = 32
"""Length of a stream's key: AES-256."""

_ZEROS = bytes(1 << 18)
"""What the cipher turns into key stream, a piece at a time that stays in the processor's cache."""


@frozen
class Seeds:
    """The public seeds of a run, a tree keyed by purpose and place.

    Two purposes, or two places of one purpose, never share a stream, and no order of drawing
    matters: site 7 of round 3 gets the same numbers whichever engine runs it.

    Examples:
        >>> Seeds(1).integer("weights") == Seeds(1).integer("weights")
        True
        >>> Seeds(1).integer("augmentation", 3, 7) == Seeds(1).integer("augmentation", 7, 3)
        False

    Attributes:
        root: The study's seed.
    """

    root: int

    def sequence(self, purpose: str, *place: int) -> np.random.SeedSequence:
        """The seed sequence of `purpose` at `place` (a round, a site, …)."""
        tag = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:4], "big")
        return np.random.SeedSequence(self.root, spawn_key=(tag, *place))

    def generator(self, purpose: str, *place: int) -> np.random.Generator:
        """A NumPy generator for `purpose` at `place`."""
        return np.random.Generator(np.random.PCG64(self.sequence(purpose, *place)))

    def integer(self, purpose: str, *place: int) -> int:
        """A 63-bit seed for `purpose` at `place`, for a library that wants a plain integer."""
        low, high = self.sequence(purpose, *place).generate_state(2, np.uint32)
        return (int(high) << 32 | int(low)) >> 1


def _key_from(seed: int, path: tuple[int | str, ...]) -> bytes:
    text = "\x1f".join([str(seed), *(str(part) for part in path)])
    return hashlib.sha256(b"cohortium simulation\x1f" + text.encode()).digest()


@frozen
class Randomness:
    """A source of secret randomness, forked into independent streams.

    Make one with `Randomness.system()` or, in a simulation only,
    `Randomness.insecure_from_seed(seed)`.

    Guarantees:
        A system source draws a fresh 256-bit key from the operating system for every fork and
        keeps none of them; forking twice with one label gives two unrelated streams.
        A simulated source is a pure function of its seed and path: whoever knows the seed knows
        every number drawn.  Nothing computed with it is private, and `is_simulated` says so.
    """

    _seed: int | None = field(default=None, repr=False)
    _path: tuple[int | str, ...] = ()

    @classmethod
    def system(cls) -> Randomness:
        """The operating system's generator."""
        return cls()

    @classmethod
    def insecure_from_seed(cls, seed: int) -> Randomness:
        """A source that `seed` repeats, for simulations and tests."""
        return cls(seed)

    @property
    def is_simulated(self) -> bool:
        """Whether the numbers can be repeated from a seed, and so protect nothing."""
        return self._seed is not None

    def derive(self, *label: int | str) -> Randomness:
        """An independent source, named by `label` where it is simulated."""
        return self if self._seed is None else Randomness(self._seed, (*self._path, *label))

    def stream(self, *label: int | str) -> KeyStream:
        """A new key stream, named by `label` where it is simulated."""
        if self._seed is None:
            return KeyStream(os.urandom(KEY_BYTES))
        return KeyStream(_key_from(self._seed, (*self._path, *label)))

    def secret_bytes(self, size: int, *label: int | str) -> bytes:
        """`size` secret bytes, for a key or a nonce; named by `label` where it is simulated."""
        return os.urandom(size) if self._seed is None else self.stream(*label).bytes(size)


class KeyStream:
    """The AES-256-CTR key stream of one key, read as bytes, integers, uniforms or normals.

    Guarantees:
        With a uniformly random key the output cannot be told from uniformly random bytes by
        anyone who cannot break AES-256 (NIST SP 800-38A, CTR mode from counter zero).
        A key must be used for one stream only.
    """

    def __init__(self, key: bytes) -> None:
        """Start the stream of a 32-byte `key`."""
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def bytes(self, size: int) -> bytes:
        """The next `size` bytes."""
        out = bytearray(size)
        self.fill(memoryview(out))
        return bytes(out)

    def fill(self, out: memoryview) -> None:
        """Write the next `len(out)` bytes of the stream into `out`, a writable byte view."""
        zeros = memoryview(_ZEROS)
        for start in range(0, len(out), len(zeros)):
            piece = out[start : start + len(zeros)]
            self._encryptor.update_into(zeros[: len(piece)], piece)

    def uniform(self, size: int) -> NDArray[np.float64]:
        """`size` uniform numbers in [0, 1) with 53 random bits each."""
        high = (self._words(size) >> np.uint64(11)).astype(np.float64)
        return np.multiply(high, 2.0**-53, out=high)

    def normal(self, size: int) -> NDArray[np.float64]:
        """`size` standard normal numbers, by Box and Muller (1958), in double precision.

        The largest magnitude is √(106 ln 2) ≈ 8.57: the tail beyond has a chance below 2⁻⁵⁵.
        """
        pairs = (size + 1) // 2
        # 1 - u lies in (0, 1], so that the logarithm is finite.
        radius = np.sqrt(-2.0 * np.log1p(-self.uniform(pairs)))
        angle = (2.0 * np.pi) * self.uniform(pairs)
        out = np.empty(2 * pairs)
        np.multiply(radius, np.cos(angle), out=out[:pairs])
        np.multiply(radius, np.sin(angle), out=out[pairs:])
        return out[:size]

    def below(self, limit: int) -> int:
        """A uniform integer in [0, `limit`), by rejection: no modulo bias."""
        bits = limit.bit_length()
        size = (bits + 7) // 8
        while True:
            value = int.from_bytes(self.bytes(size), "big") >> (8 * size - bits)
            if value < limit:
                return value

    def generator(self) -> np.random.Generator:
        """A NumPy generator seeded from this stream, for shuffles that protect nothing."""
        return np.random.default_rng(int.from_bytes(self.bytes(32), "big"))

    def _words(self, size: int) -> NDArray[np.uint64]:
        return np.frombuffer(self.bytes(8 * size), dtype="<u8")
