from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from cohortium.errors import RefusalError, RunError
from cohortium.journal import FileJournal, Journal, MemoryJournal

ENTRIES = [b"", b"one", b"\n\r\x00" * 9, bytes(range(256))]


def written(path: Path) -> None:
    journal = FileJournal(path)
    for entry in ENTRIES:
        journal.append(entry)
    journal.close()


def reopened(path: Path) -> list[bytes]:
    journal = FileJournal(path)
    journal.close()
    return list(journal.entries())


@pytest.mark.parametrize("make", [lambda _: MemoryJournal(), FileJournal])
def test_entries_stay_in_order(tmp_path: Path, make: Callable[[Path], Journal]) -> None:
    journal = make(tmp_path / "journal")
    for entry in ENTRIES:
        journal.append(entry)
    assert list(journal.entries()) == ENTRIES


def test_a_file_keeps_them_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path)
    assert reopened(path) == ENTRIES
    journal = FileJournal(path)
    journal.append(b"more")
    journal.close()
    assert reopened(path) == [*ENTRIES, b"more"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_line_torn_anywhere_is_taken_off_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path)
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        assert reopened(path) == ENTRIES[:-1]
        assert path.read_bytes() == whole[:start]


def test_damage_before_the_last_line_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path)
    whole = bytearray(path.read_bytes())
    whole[20] ^= 1
    path.write_bytes(whole)
    with pytest.raises(RunError, match="damaged in line 2"):
        FileJournal(path)


def test_an_entry_is_durable_before_append_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    write, fsync = os.write, os.fsync

    def noted(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def noting(*arguments: object) -> object:
            done.append(name)
            return call(*arguments)

        return noting

    monkeypatch.setattr(os, "write", noted("write", write))
    monkeypatch.setattr(os, "fsync", noted("fsync", fsync))
    journal = FileJournal(tmp_path / "journal")
    done.clear()
    journal.append(b"entry")
    assert done == ["write", "fsync"]
    journal.close()


def test_what_could_not_be_kept_is_refused_and_ends_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    written(path)
    journal = FileJournal(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda _file, data: len(data) // 2)
        with pytest.raises(RefusalError, match="cannot be written"):
            journal.append(b"lost")
    with pytest.raises(RefusalError):
        journal.append(b"later")
    assert list(journal.entries()) == ENTRIES == reopened(path)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path / "journal")
    with pytest.raises(RunError, match="in use"):
        FileJournal(tmp_path / "journal")
    journal.close()
    with pytest.raises(RunError, match="cannot open"):
        FileJournal(tmp_path)
