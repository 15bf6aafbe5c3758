"""A file of a bounded size: its content, and the memory for it."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from cohortium.runs.dataset_info import read_result
from cohortium.storage.bounded_read import BLOCK, read_bounded


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, 3 * BLOCK + 5])
def test_file_is_read_up_to_its_limit(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    data = bytes(range(251)) * (size // 251 + 1)
    path.write_bytes(data[:size])
    assert read_bounded(path, 1 << 30) == data[:size]
    assert read_bounded(path, size) == data[:size]
    if size:
        assert read_bounded(path, size - 1) == data[:size], "one byte shows that it is too large"
    assert len(read_bounded(path, size // 2)) == min(size, size // 2 + 1)


def test_small_result_takes_little_memory(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"rounds": 1}', "utf-8")
    tracemalloc.start()
    try:
        assert read_result(tmp_path) == {"rounds": 1}
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
