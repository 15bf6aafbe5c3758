"""Patients' numbers: equal for a patient, of no use without the secret."""

from __future__ import annotations

import hashlib
import hmac

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cohortium.plugin import DataError
from cohortium_dicom._patients import patient_key
from tests.support.dicom_files import PATIENT

SECRET = bytes(range(32))


def test_key_is_the_start_of_hmac_sha256() -> None:
    text = b"cohortium patient\0" + PATIENT.encode()
    digest = hmac.new(SECRET, text, hashlib.sha256).digest()
    assert patient_key(PATIENT, SECRET) == int.from_bytes(digest[:8], "big") // 2


@given(st.text("ABÉ^-07 ", min_size=1).filter(str.strip), st.binary(min_size=16))
def test_key_is_a_nonnegative_int64(patient: str, secret: bytes) -> None:
    key = patient_key(patient, secret)
    assert 0 <= key <= np.iinfo(np.int64).max
    assert key == patient_key(f" {patient} ", secret)


def test_key_depends_on_patient_and_secret() -> None:
    keys = {patient_key(name, key) for name in ("a", "b") for key in (SECRET, SECRET[::-1])}
    assert len(keys) == 4


def test_short_secret_is_refused_without_patient() -> None:
    with pytest.raises(DataError, match="has 15 bytes; give at least 16") as caught:
        patient_key(PATIENT, bytes(15))
    assert PATIENT not in str(caught.value)


@pytest.mark.parametrize("patient", ["", "  "])
def test_empty_patient_is_refused(patient: str) -> None:
    with pytest.raises(DataError, match="has no PatientID"):
        patient_key(patient, SECRET)
