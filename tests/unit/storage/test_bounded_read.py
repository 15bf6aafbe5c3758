"""A file of a bounded size: its content, the refusals of others, and the memory for it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from cohortium.errors import DataError, RecordError
from cohortium.runs.stored_result import ModelResult, read_result
from cohortium.storage.bounded_read import BLOCK, read_bounded, read_if_present

Read = Callable[..., bytes | None]


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, 3 * BLOCK + 5])
def test_file_is_read_up_to_its_limit(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    data = bytes(range(251)) * (size // 251 + 1)
    path.write_bytes(data[:size])
    assert read_bounded(path, 1 << 30, DataError) == data[:size]
    assert read_if_present(path, size, DataError) == data[:size]
    if size:
        with pytest.raises(DataError, match=f"file is larger than {size - 1:,} bytes"):
            read_bounded(path, size - 1, DataError)
        with pytest.raises(DataError, match="larger than"):
            read_if_present(path, size - 1, DataError)


@pytest.mark.parametrize("read", [read_bounded, read_if_present])
def test_refusal_names_file_and_remedy(tmp_path: Path, read: Read) -> None:
    (tmp_path / "big").write_bytes(bytes(12_346))
    reasons = {
        "big": "the key {} is larger than 12,345 bytes",
        ".": "cannot read the key {}: it is a folder;",
    }
    for name, reason in reasons.items():
        path = tmp_path / name
        with pytest.raises(RecordError) as refused:
            read(path, 12_345, RecordError, what="the key", remedy="take another one")
        assert str(refused.value).startswith(reason.format(path))
        assert str(refused.value).endswith("; take another one.")


def test_missing_file_is_none_if_optional(tmp_path: Path) -> None:
    path = tmp_path / "none"
    assert read_if_present(path, 1, RecordError) is None
    with pytest.raises(RecordError) as refused:
        read_bounded(path, 1, RecordError)
    assert str(refused.value) == f"cannot read {path}: No such file or directory."


def test_small_result_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text('{"guarantee": null, "weights_sha256": "00", "versions": {}}', "utf-8")
    tracemalloc.start()
    try:
        found = read_result(path, ModelResult)
        assert found == ModelResult(guarantee=None, weights_sha256="00", versions={})
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
