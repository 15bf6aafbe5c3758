"""Source of every random number: public seeds, or a party's secrets.

`Seeds` is the public tree of a run: initial weights, partition, cohorts. `Randomness` is a party's
secret stream: keys, masks, noise, Poisson batches, augmentation. It is the operating system's,
unless a *simulation* asks for repeatable noise. In that case, `is_simulated` is true.
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
"""Length of a stream's key in bytes: AES-256."""

_ZEROS = bytes(1 << 18)
"""Zeros that the cipher turns into key stream.

A block of this size stays in the processor's cache.
"""


@frozen
class Seeds:
    """Public seeds of a run, a tree keyed by purpose and place.

    Two purposes, or two places of one purpose, never share a stream. The order of drawing does not
    matter: site 7 of round 3 gets the same numbers with every engine.

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
        """Return the seed sequence of `purpose` at `place`.

        A place is a round, a site, ….
        """
        tag = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:4], "big")
        return np.random.SeedSequence(self.root, spawn_key=(tag, *place))

    def generator(self, purpose: str, *place: int) -> np.random.Generator:
        """Return a NumPy generator for `purpose` at `place`."""
        return np.random.Generator(np.random.PCG64(self.sequence(purpose, *place)))

    def integer(self, purpose: str, *place: int) -> int:
        """Return a 63-bit seed for `purpose` at `place`, as a plain integer.

        Some libraries need a plain integer.
        """
        low, high = self.sequence(purpose, *place).generate_state(2, np.uint32)
        return (int(high) << 32 | int(low)) >> 1


def _key_from(seed: int, path: tuple[int | str, ...]) -> bytes:
    text = "\x1f".join([str(seed), *(str(part) for part in path)])
    return hashlib.sha256(b"cohortium simulation\x1f" + text.encode()).digest()


@frozen
class Randomness:
    """A source of secret randomness, divided into independent streams.

    Create one with `Randomness.system()` or, in a simulation only,
    `Randomness.insecure_from_seed(seed)`.

    Guarantees:
        A system source draws a fresh 256-bit key from the operating system for every derivation and
        stores none of them.
        Two derivations with one label give two unrelated streams.
        A simulated source is a pure function of its seed and path: a party that knows the seed
        knows every number drawn.
        Nothing computed with it is private, and `is_simulated` is true.
    """

    _seed: int | None = field(default=None, repr=False)
    _path: tuple[int | str, ...] = ()

    @classmethod
    def system(cls) -> Randomness:
        """Return the operating system's generator."""
        return cls()

    @classmethod
    def insecure_from_seed(cls, seed: int) -> Randomness:
        """Return a source that `seed` repeats, for simulations and tests."""
        return cls(seed)

    @property
    def is_simulated(self) -> bool:
        """Whether a seed can repeat the numbers, which then protect nothing."""
        return self._seed is not None

    def derive(self, *label: int | str) -> Randomness:
        """Return an independent source, named by `label` if it is simulated."""
        return self if self._seed is None else Randomness(self._seed, (*self._path, *label))

    def stream(self, *label: int | str) -> KeyStream:
        """Return a new key stream, named by `label` if it is simulated."""
        if self._seed is None:
            return KeyStream(os.urandom(KEY_BYTES))
        return KeyStream(_key_from(self._seed, (*self._path, *label)))

    def secret_bytes(self, size: int, *label: int | str) -> bytes:
        """Return `size` secret bytes, for a key or a nonce.

        If the source is simulated, `label` names the bytes.
        """
        return os.urandom(size) if self._seed is None else self.stream(*label).bytes(size)


class KeyStream:
    """The AES-256-CTR key stream of one key, as bytes or as numbers.

    The numbers are integers, uniforms or normals.

    Guarantees:
        The mode is CTR from counter zero (NIST SP 800-38A).
        With a uniformly random key, only an adversary who can break AES-256 can distinguish the
        output from uniformly random bytes.
        A key must be used for one stream only.
    """

    def __init__(self, key: bytes) -> None:
        """Start the stream of a 32-byte `key`."""
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def bytes(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        out = bytearray(size)
        self.fill(memoryview(out))
        return bytes(out)

    def fill(self, out: memoryview) -> None:
        """Write the stream's next bytes into `out`, a writable byte view.

        It writes `len(out)` bytes.
        """
        zeros = memoryview(_ZEROS)
        for start in range(0, len(out), len(zeros)):
            piece = out[start : start + len(zeros)]
            self._encryptor.update_into(zeros[: len(piece)], piece)

    def uniform(self, size: int) -> NDArray[np.float64]:
        """Return `size` uniform numbers in [0, 1) with 53 random bits each."""
        high = (self._words(size) >> np.uint64(11)).astype(np.float64)
        return np.multiply(high, 2.0**-53, out=high)

    def normal(self, size: int) -> NDArray[np.float64]:
        """Return `size` standard normal numbers, by Box and Muller (1958).

        They are in double precision. The largest magnitude is √(106 ln 2) ≈ 8.57: the tail beyond
        has a probability below 2⁻⁵⁵.
        """
        pairs = (size + 1) // 2
        # 1 - u is in (0, 1], so that the logarithm is finite.
        radius = np.sqrt(-2.0 * np.log1p(-self.uniform(pairs)))
        angle = (2.0 * np.pi) * self.uniform(pairs)
        out = np.empty(2 * pairs)
        np.multiply(radius, np.cos(angle), out=out[:pairs])
        np.multiply(radius, np.sin(angle), out=out[pairs:])
        return out[:size]

    def below(self, limit: int) -> int:
        """Return a uniform integer in [0, `limit`), by rejection: no modulo bias."""
        bits = limit.bit_length()
        size = (bits + 7) // 8
        while True:
            value = int.from_bytes(self.bytes(size), "big") >> (8 * size - bits)
            if value < limit:
                return value

    def generator(self) -> np.random.Generator:
        """Return a NumPy generator seeded from this stream, without protection.

        It is for shuffles that protect nothing.
        """
        return np.random.default_rng(int.from_bytes(self.bytes(32), "big"))

    def _words(self, size: int) -> NDArray[np.uint64]:
        return np.frombuffer(self.bytes(8 * size), dtype="<u8")
