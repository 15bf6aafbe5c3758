"""Numbers in place of patients' names, which no one can turn back without the site's key.

A name, or a number in a hospital's records, is found again by trying all of them, unless the hash
has a secret key. The key stays in a file of the site. No error and no `repr` contains a name.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
from typing import TYPE_CHECKING, Final

import numpy as np

from cohortium.errors import DataError
from cohortium.storage.atomic import atomic_create
from cohortium.storage.secret_file import read_secret

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

KEY_BYTES: Final = 32
"""Length of a key in bytes."""

_MAX_BYTES: Final = 1 << 10
"""More bytes than the digits of a key take."""

_REMEDY: Final = "name a file in a folder of yours"

_LABEL: Final = b"cohortium patient\0"
"""Purpose of the hash, so that other uses of the same key give other values."""


def pseudonyms(texts: Sequence[str], key: bytes | None) -> NDArray[np.int64]:
    """Return one number for each text, equal where the texts are.

    With a key, a number is the first 63 bits of the text's HMAC-SHA256 (RFC 2104). It is the same
    in every file that is read with that key. Without one, texts are numbered in the order in which
    they occur. Such numbers say nothing about the texts, and differ between files.

    Args:
        texts: Names or numbers of patients.
        key: The site's secret key, of `KEY_BYTES` bytes, or None.

    Returns:
        Numbers from 0, shape (N,).

    Raises:
        DataError: Two texts have one hash. The chance for a million patients is below 1e-7.

    Examples:
        >>> pseudonyms(["P-7", "P-9", "P-7"], None).tolist()
        [0, 1, 0]
    """
    distinct = dict.fromkeys(texts)
    if key is None:
        numbers = {text: number for number, text in enumerate(distinct)}
    else:
        numbers = {text: _hash(text, key) for text in distinct}
    if len(set(numbers.values())) < len(distinct):
        raise DataError("two patients have one number under this key; draw another key.")
    return np.array([numbers[text] for text in texts], dtype=np.int64)


def read_patient_key(path: Path) -> bytes:
    """Return the key in the file `path`, which is created if it is missing.

    Guarantees:
        A new file has a key of 256 random bits, and only its owner can read it.

    Raises:
        DataError: The file cannot be read or created, holds no key, or others may read it.
    """
    try:
        # Another process may create it in between, which is as good.
        if not path.exists():
            with contextlib.suppress(FileExistsError):
                atomic_create(path, secrets.token_hex(KEY_BYTES).encode())
    except OSError as error:
        raise DataError(
            f"cannot create the patients' key {path}: {error.strerror}; {_REMEDY}."
        ) from error
    data = read_secret(path, _MAX_BYTES, DataError, what="the patients' key", remedy=_REMEDY)
    try:
        key = bytes.fromhex(data.decode("ascii").strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise DataError(
            f"{path} holds no key, which is {2 * KEY_BYTES} digits from 0 to f; name a file that "
            "does not exist, and it is created."
        )
    return key


def _hash(text: str, key: bytes) -> int:
    digest = hmac.digest(key, _LABEL + text.encode("utf-8", "surrogatepass"), "sha256")
    return int.from_bytes(digest[:8], "big") >> 1
