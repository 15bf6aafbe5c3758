from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cohortium.data.pseudonyms import KEY_BYTES, pseudonyms, read_patient_key
from cohortium.errors import DataError

KEY = bytes(range(KEY_BYTES))


def test_keyed_numbers_have_known_values() -> None:
    # openssl mac -digest sha256 -macopt hexkey:0001…1f HMAC, of "cohortium patient\0" and the text.
    first, second = 7865203829989159235, 3351391964525382091
    assert pseudonyms(["P-7", "Müller", "P-7"], KEY).tolist() == [first, second, first]


@given(st.lists(st.text(), min_size=1), st.sampled_from([KEY, bytes(KEY_BYTES), None]))
def test_numbers_are_equal_where_texts_are(texts: list[str], key: bytes | None) -> None:
    numbers = pseudonyms(texts, key)
    assert numbers.dtype == np.int64
    assert numbers.min() >= 0
    assert len(set(zip(texts, numbers.tolist(), strict=True))) == len(set(texts))
    assert len(np.unique(numbers)) == len(set(texts))


def test_another_key_gives_other_numbers() -> None:
    assert pseudonyms(["P-7"], KEY)[0] != pseudonyms(["P-7"], bytes(KEY_BYTES))[0]


def test_missing_key_is_created_once(tmp_path: Path) -> None:
    path = tmp_path / "key"
    key = read_patient_key(path)
    assert len(key) == KEY_BYTES
    assert read_patient_key(path) == key
    assert path.stat().st_mode & 0o077 == 0
    assert read_patient_key(tmp_path / "other") != key


@pytest.mark.parametrize("content", [b"", b"00" * 31, b"x" * 64, b"\xff" * 64])
def test_damaged_key_is_refused_unseen(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(DataError, match=r"key holds no key, which is 64 digits"):
        read_patient_key(path)
    with pytest.raises(DataError, match=r"cannot create the patients' key .*No such file"):
        read_patient_key(tmp_path / "missing" / "key")
    with pytest.raises(DataError, match=r"cannot read the patients' key .*it is a folder"):
        read_patient_key(tmp_path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    read_patient_key(path)
    path.chmod(mode)
    with pytest.raises(DataError, match=r"others may read the patients' key .*mode 0600"):
        read_patient_key(path)


def test_endless_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"0" * (1 << 20))
    path.chmod(0o600)
    with pytest.raises(DataError, match=r"the patients' key .* is larger than 1,024 bytes"):
        read_patient_key(path)
