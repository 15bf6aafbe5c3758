from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from cohortium.errors import RefusalError, RunError
from cohortium.storage.append_log import HEADER, FileJournal, Journal, MemoryJournal

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


def test_file_journal_keeps_entries_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path)
    assert reopened(path) == ENTRIES
    journal = FileJournal(path)
    journal.append(b"more")
    journal.close()
    assert reopened(path) == [*ENTRIES, b"more"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_torn_last_line_alone_is_removed(tmp_path: Path) -> None:
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


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def failing(call: str, *, torn: int = 0) -> Callable[..., int]:
    """`os.write` or `os.fsync` of a disk that is full, after `torn` bytes."""

    def fail(file: int, data: bytes = b"") -> int:
        if not torn:
            raise FULL
        return WRITE(file, bytes(data)[:torn]) if call == "write" else 0

    return fail


WRITE = os.write


@pytest.mark.parametrize("call", ["write", "fsync", "torn"])
@pytest.mark.parametrize("is_mendable", [True, False])
def test_journal_continues_after_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, *, is_mendable: bool
) -> None:
    path = tmp_path / "journal"
    written(path)
    journal = FileJournal(path)
    with monkeypatch.context() as patch:
        if call == "torn":
            patch.setattr(os, "write", failing("write", torn=7))
        else:
            patch.setattr(os, call, failing(call))
        if not is_mendable:
            patch.setattr(os, "ftruncate", failing("ftruncate"))
        for keep in (journal.try_out, lambda: journal.append(b"lost"), journal.try_out):
            with pytest.raises(RefusalError, match="cannot be written"):
                keep()
    assert list(journal.entries()) == ENTRIES
    journal.try_out()
    journal.append(b"found")
    journal.close()
    assert reopened(path) == [*ENTRIES, b"found"]


def test_try_out_leaves_journal_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path)
    before = path.read_bytes()
    journal = FileJournal(path)
    journal.try_out()
    journal.close()
    assert path.read_bytes() == before
    path.write_bytes(before + bytes(900))
    assert reopened(path) == ENTRIES


def test_a_journal_without_a_header_is_read(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path)
    path.write_bytes(path.read_bytes().removeprefix(HEADER))
    assert reopened(path) == ENTRIES
    path.write_bytes(HEADER[:5])
    assert reopened(path) == []


@pytest.mark.parametrize(
    "content", [b"notes without an end", b"aGVsbG8=", b"PK\x03\x04 images\n", bytes(30), b"\n"]
)
def test_foreign_file_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine"
    path.write_bytes(content)
    with pytest.raises(RunError, match="mine is no journal; name another file"):
        FileJournal(path)
    assert path.read_bytes() == content


def test_journal_in_use_is_refused(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path / "journal")
    with pytest.raises(RunError, match="in use"):
        FileJournal(tmp_path / "journal")
    journal.close()
    with pytest.raises(RunError, match="cannot open"):
        FileJournal(tmp_path)
