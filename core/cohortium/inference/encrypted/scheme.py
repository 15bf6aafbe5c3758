"""Parameters of the encryption, and its values as arrays.

Keys and ciphertexts travel as arrays of residues, in fixed shapes. Each residue is compared with
its prime before the library sees it. So no bytes from another party reach the library's own parser,
and no parameter of the scheme is negotiated.

The security is that of ring learning with errors for degree 8192 and a modulus of 180 bits. The
Homomorphic Encryption Standard (Albrecht et al. 2018) allows 218 bits there for 128-bit security.
The library refuses parameters below it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import sys
import tempfile
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from attrs import field, frozen

from cohortium.errors import MessageError, RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Residues = NDArray[np.uint64]

NAME: Final = "ckks-8192-60-60-60"
"""Name of these parameters in messages."""

DEGREE: Final = 8192
"""N, the degree of the ring."""

SLOTS: Final = DEGREE // 2
"""Real numbers of a ciphertext."""

PRIME_BITS: Final = (60, 60, 60)
"""Sizes of the primes. The last one serves keys only."""

LEVELS: Final = len(PRIME_BITS) - 1
"""Number of the primes of a ciphertext."""

WORD: Final = 8
"""Bytes of a residue."""

_DTYPE: Final = np.dtype("<u8")
_HEADER: Final = struct.Struct("<HBBBBHQ")
_DOMAIN: Final = b"cohortium encrypted inference: uniform key part\x1f"


@frozen(eq=False)
class Scheme:
    """The library's context, for the only parameters that there are.

    Attributes:
        api: The library's module.
        context: Its context.
        primes: The primes, those of a ciphertext first.
        head: First bytes of the library's own files, which name its version.
    """

    api: Any
    context: Any
    primes: tuple[int, ...]
    head: bytes = field(repr=False)

    @classmethod
    def open(cls) -> Scheme:
        """Load the library.

        Raises:
            RequestError: It is not installed.
        """
        try:
            import tenseal.sealapi as api
        except ImportError as error:
            raise RequestError(
                "encrypted inference needs a package; pip install 'cohortium[encrypted]'."
            ) from error
        given = api.EncryptionParameters(api.SCHEME_TYPE.CKKS)
        given.set_poly_modulus_degree(DEGREE)
        given.set_coeff_modulus(api.CoeffModulus.Create(DEGREE, list(PRIME_BITS)))
        context = api.SEALContext(given, True, api.SEC_LEVEL_TYPE.TC128)  # noqa: FBT003
        assert context.parameters_set(), context.parameters_error_message()
        primes = tuple(modulus.value() for modulus in given.coeff_modulus())
        with _unnamed_file() as (number, path):
            given.save(path)
            head = os.pread(number, _HEADER.size, 0)
        return cls(api, context, primes, head)

    @property
    def modulus(self) -> int:
        """The modulus of a ciphertext."""
        return self.primes[0] * self.primes[1]

    def ciphertext(self, residues: Residues, scale: float) -> Any:
        """Return the library's ciphertext of checked residues, shape (2, L, N).

        They are values of the two polynomials, as the library stores them.
        """
        found = self.api.Ciphertext()
        self._load(found, residues, self.context.first_parms_id(), scale, is_ntt_form=True)
        return found

    def short_ciphertext(self, constant: Residues, mask: Residues, scale: float) -> Any:
        """Return the library's ciphertext of one number, shapes (L,) and (L, N).

        They are coefficients. The first polynomial is a constant.
        """
        residues = np.zeros((2, LEVELS, DEGREE), np.uint64)
        residues[0, :, 0], residues[1] = constant, mask
        found = self.api.Ciphertext()
        self._load(found, residues, self.context.first_parms_id(), scale, is_ntt_form=False)
        self.api.Evaluator(self.context).transform_to_ntt_inplace(found)
        return found

    def public_key(self, first: Residues, uniform: Residues) -> Any:
        """Return the library's public key of checked residues, each of shape (L + 1, N)."""
        found = self.api.PublicKey()
        both = np.stack([first, uniform])
        self._load(found, both, self.context.key_parms_id(), 1.0, is_ntt_form=True)
        return found

    def _load(
        self, into: Any, residues: Residues, level: list[int], scale: float, *, is_ntt_form: bool
    ) -> None:
        """Fill a value of the library with residues of shape (2, primes, N)."""
        _, primes, degree = residues.shape
        content = struct.pack("<Q", residues.size) + residues.astype(_DTYPE).tobytes()
        shape = struct.pack("<4Q?3QdQ", *level, is_ntt_form, 2, degree, primes, scale, 1)
        data = self._framed(shape + self._framed(content))
        with _unnamed_file() as (number, path):
            os.pwrite(number, data, 0)
            into.load(self.context, path)

    def _framed(self, data: bytes) -> bytes:
        """Return `data` behind the head of the library's files, uncompressed."""
        magic, size, major, minor, *_ = _HEADER.unpack(self.head)
        return _HEADER.pack(magic, size, major, minor, 0, 0, size + len(data)) + data

    def uniform(self, seed: bytes) -> Residues:
        """Return the uniform part of a public key, shape (L + 1, N), from a public seed.

        Both parties derive it with SHAKE256. So neither can choose it.
        """
        rows = []
        for index, prime in enumerate(self.primes):
            # The primes are just below a power of two, so hardly any draw is rejected.
            stream = hashlib.shake_256(_DOMAIN + bytes([index]) + seed)
            draws = np.frombuffer(stream.digest(WORD * 2 * DEGREE), _DTYPE)
            draws = draws & np.uint64((1 << prime.bit_length()) - 1)
            rows.append(draws[draws < prime][:DEGREE])
        return np.stack(rows)

    def decode(self, data: bytes, shape: tuple[int, ...], what: str) -> Residues:
        """Return the residues in untrusted bytes.

        Args:
            data: Bytes from another party.
            shape: The shape of the residues. The axis before the last one is that of the primes.
            what: Name of the value in an error.

        Raises:
            MessageError: They are not of that shape, or a residue is not below its prime.
        """
        size = WORD * int(np.prod(shape))
        if len(data) != size:
            raise MessageError(f"{what} must have {size} bytes, not {len(data)}.")
        found = np.frombuffer(data, _DTYPE).reshape(shape).astype(np.uint64)
        limits = np.array(self.primes[: shape[-2]], np.uint64)[:, None]
        if not (found < limits).all():
            raise MessageError(f"{what} has a residue that is not below its prime.")
        return found

    def polynomials(self, value: Any, first: int, count: int, primes: int) -> Residues:
        """Return polynomials of a value of the library, shape (count, primes, N).

        Args:
            value: A ciphertext or plaintext.
            first: Position of the first polynomial.
            count: Number of polynomials.
            primes: Number of residues of each coefficient.
        """
        size = primes * DEGREE
        places = range(first * size, (first + count) * size)
        found = np.fromiter(map(value.__getitem__, places), np.uint64, len(places))
        return found.reshape(count, primes, DEGREE)


def encode(residues: Residues) -> bytes:
    """Return residues as bytes."""
    return residues.astype(_DTYPE).tobytes()


@contextlib.contextmanager
def _unnamed_file() -> Iterator[tuple[int, str]]:
    """Yield the number and a path of a file without a name, in memory where there is such.

    The library reads and writes its values by a path.
    """
    if sys.platform == "linux":
        number = os.memfd_create("cohortium")
        try:
            yield number, f"/proc/self/fd/{number}"
        finally:
            os.close(number)
    else:
        with tempfile.NamedTemporaryFile() as file:
            yield file.fileno(), file.name
