"""Refusals of files: one sentence, in bounded memory, without the patient."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest

from cohortium.data.table_dataset import FileTable
from cohortium.plugin import DataError, Dataset

MEMORY = 1 << 22
"""Bytes beyond the file that a refusal may take: 4 MiB."""


def refused_in_memory(attempt: Callable[[], object], content: bytes, memory: int = MEMORY) -> str:
    """The sentence that `attempt` gives for a file of `content`, in bounded memory."""
    attempt()  # imports are not part of the measurement
    tracemalloc.start()
    try:
        text = attempt()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(text, str)
    assert peak < 3 * len(content) + memory
    return text


def refuse_table(dataset: Dataset, words: str) -> None:
    """Check that a table is refused in one sentence that names its line, and no patient."""
    assert isinstance(dataset, FileTable)
    with pytest.raises(DataError, match=words) as caught:
        dataset.load()
    text = str(caught.value)
    assert text.startswith(f"{dataset.path}, line ")
    assert text.endswith(".")
    assert "\n" not in text
    assert "DOE" not in text
