"""Numbers that stand for patients at one hospital."""

from __future__ import annotations

import hmac
from typing import Final

from cohortium.plugin import DataError

MIN_SECRET_BYTES: Final = 16
"""Smallest length of the secret in bytes."""

_LABEL: Final = b"cohortium patient\0"
"""Purpose of the hash, so that other uses of the same secret give other values."""


def patient_key(patient_id: str, secret: bytes) -> int:
    """Return the number of a patient.

    It is the beginning of HMAC-SHA256 (RFC 2104) of the PatientID, without spaces around it.

    Args:
        patient_id: The PatientID of a file, tag (0010,0020).
        secret: Random bytes that never leave the hospital.

    Returns:
        A number from 0 to 2⁶³ − 1. It is the same for all files of a patient.

    Raises:
        DataError: The PatientID is empty, or the secret is short.

    Guarantees:
        A party without the secret cannot compute the number from a PatientID, nor test a guess.
        The PatientID is in no error.

    Examples:
        >>> patient_key("A-17", bytes(32)) == patient_key(" A-17 ", bytes(32))
        True
    """
    if len(secret) < MIN_SECRET_BYTES:
        raise DataError(
            f"the secret of the patients' numbers has {len(secret)} bytes; give at least "
            f"{MIN_SECRET_BYTES} random bytes."
        )
    text = patient_id.strip()
    if not text:
        raise DataError(
            "a file has no PatientID; leave it out, or give the patients in a table of your own."
        )
    digest = hmac.digest(secret, _LABEL + text.encode("utf-8", "surrogatepass"), "sha256")
    # The sign bit stays clear: a column of patients has numbers from 0 on.
    return int.from_bytes(digest[:8], "big") >> 1
