"""Stored predictions of a run: read within bounds, or refused in one sentence."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cohortium.errors import RequestError
from cohortium.runs.result import PREDICTIONS, predictions_of
from tests.support.flipped_bytes import refusals

TASK = {"name": "multiclass", "names": ["a", "b"]}
ARRAYS: dict[str, Any] = {
    "predictions": np.linspace(0, 1, 120, dtype=np.float32).reshape(60, 2),
    "labels": np.arange(60) % 2,
    "task": np.array(json.dumps(TASK)),
}


def write(folder: Path, content: bytes) -> None:
    path = folder / PREDICTIONS
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


def archive(**changes: Any) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **(ARRAYS | changes))
    return file.getvalue()


def test_predictions_are_read_as_written(tmp_path: Path) -> None:
    write(tmp_path, archive())
    found = predictions_of(tmp_path)
    assert np.array_equal(found.values, ARRAYS["predictions"])
    assert np.array_equal(found.labels, ARRAYS["labels"])
    assert found.task.names == ("a", "b")


def test_missing_predictions_are_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="has no predictions for test images"):
        predictions_of(tmp_path)


def test_any_wrong_byte_is_refused_in_a_sentence(tmp_path: Path) -> None:
    write(tmp_path, archive())
    path = tmp_path / PREDICTIONS
    found = refusals(path, lambda: predictions_of(tmp_path), RequestError)
    assert set(found) == {f"{path} is damaged; run that study again."}


def test_array_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    form = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)}
    np.lib.format.write_array_header_1_0(header, form)
    (tmp_path / PREDICTIONS).parent.mkdir()
    with zipfile.ZipFile(tmp_path / PREDICTIONS, "w") as file:
        file.writestr("predictions.npy", header.getvalue())
    with pytest.raises(RequestError, match="is damaged"):
        predictions_of(tmp_path)
