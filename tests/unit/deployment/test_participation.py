"""What a hospital keeps of its runs, and what it never removes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from cohortium.deployment.participation import MAX_STORED_RUNS, ParticipationStore
from cohortium.errors import RefusalError
from cohortium.storage.atomic import UNFINISHED


def session(number: int) -> bytes:
    return number.to_bytes(16, "big")


def begin(participations: ParticipationStore, number: int) -> None:
    participations.add(participations.for_session(session(number)), b"an invitation", keep=())


def test_oldest_participations_are_removed_first(tmp_path: Path) -> None:
    mine = {
        tmp_path / "images" / "0001.png": b"a scan",
        tmp_path / "chest.npz": b"more scans",
        # Named as a run's folder is, and none.
        tmp_path / ("ab" * 16) / "0002.png": b"another",
        tmp_path / "elsewhere" / "invitation": b"to a party",
    }
    for path, content in mine.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    (tmp_path / ("cd" * 16)).symlink_to(tmp_path / "elsewhere")
    participations = ParticipationStore(tmp_path)
    begin(participations, 0)
    participations.for_session(session(0)).save_reply(bytes(32), b"a reply")
    begin(participations, 1)
    (tmp_path / session(1).hex() / "notes.txt").write_text("ours")
    for number in range(2, 2 * MAX_STORED_RUNS + 2):
        begin(participations, number)
    assert {path: path.read_bytes() for path in mine} == mine
    assert not (tmp_path / session(0).hex()).exists()
    assert [path.name for path in (tmp_path / session(1).hex()).iterdir()] == ["notes.txt"]
    kept = [
        n for n in range(100) if participations.for_session(session(n)).invitation() is not None
    ]
    assert len(kept) == MAX_STORED_RUNS


def test_deleting_run_removes_partial_files(tmp_path: Path) -> None:
    participations = ParticipationStore(tmp_path)
    begin(participations, 0)
    (tmp_path / session(0).hex() / f".reply.abc{UNFINISHED}").write_bytes(b"half")
    participations.for_session(session(0)).delete()
    assert list(tmp_path.iterdir()) == []


def test_oversized_answer_is_refused_in_advance(tmp_path: Path) -> None:
    visit = ParticipationStore(tmp_path).for_session(session(0))
    with pytest.raises(RefusalError, match="folder of runs cannot be used"):
        visit.require_room(10)
    begin(ParticipationStore(tmp_path), 0)
    visit.require_room(10)
    with pytest.raises(RefusalError, match="folder of runs cannot be used"):
        visit.require_room(1 << 60)
    assert [path.name for path in visit.folder.iterdir()] == ["invitation"]


def test_run_that_another_process_removes_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cohortium trail` reads the folder while the site's process removes its oldest run."""
    participations = ParticipationStore(tmp_path)
    for number in range(3):
        begin(participations, number)
    gone, stat = tmp_path / session(1).hex(), Path.stat

    def removed(path: Path, **options: Any) -> os.stat_result:
        if path == gone and not options:  # its time is asked for after its files are found
            shutil.rmtree(gone, ignore_errors=True)
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", removed)
    found = {number for number, _ in participations.sessions()}
    assert found == {session(0), session(2)}


def test_unreadable_folder_of_runs_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("no folder")
    with pytest.raises(RefusalError, match="folder of runs cannot be used"):
        list(ParticipationStore(tmp_path / "runs").sessions())
