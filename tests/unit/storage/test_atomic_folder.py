"""A folder that is written whole: leftovers of dead processes, and folders of living ones."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cohortium.storage.atomic_folder import UNFINISHED_FOLDER, atomic_folder
from tests.support.study_files import PATHS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="files have no locks there")

WRITER = """
import sys
from pathlib import Path
from cohortium.storage import atomic_folder

def wait(path, data):
    path.write_bytes(data)
    print("begun", flush=True)
    sys.stdin.read()

atomic_folder.atomic_write = wait
atomic_folder.atomic_folder(Path(sys.argv[1]), {"a": b"secret", "b": b"2"})
"""


@contextlib.contextmanager
def writer(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has written one of two files."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, PATHS))}
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "begun\n"
            yield process
        finally:
            process.kill()


def unfinished(folder: Path) -> list[Path]:
    return sorted(folder.glob(f".*{UNFINISHED_FOLDER}"))


def test_leftover_of_killed_process_is_removed(tmp_path: Path) -> None:
    with writer(tmp_path / "ours") as process:
        process.kill()
    (left,) = unfinished(tmp_path)
    assert (left / "a").read_bytes() == b"secret"
    atomic_folder(tmp_path / "other", {"a": b"1"})
    assert unfinished(tmp_path) == [left], "another folder's"
    atomic_folder(tmp_path / "ours", {"a": b"1"})
    assert unfinished(tmp_path) == []
    assert {path.name for path in tmp_path.iterdir()} == {"ours", "other"}


def test_folder_of_living_process_is_left_alone(tmp_path: Path) -> None:
    with writer(tmp_path / "ours") as process:
        before = unfinished(tmp_path)
        atomic_folder(tmp_path / "ours", {"a": b"1"})
        assert unfinished(tmp_path) == before
        # The loser leaves the winner's folder as it is, and none of its own.
        process.communicate("\n")
        assert process.returncode == 1
    assert unfinished(tmp_path) == []
    assert [path.name for path in (tmp_path / "ours").iterdir()] == ["a"]


@pytest.mark.parametrize("name", [".ours.abcdefgh.x", ".ours.2.abcdefgh", ".theirs.abcdefgh"])
def test_other_folders_and_links_are_left_alone(tmp_path: Path, name: str) -> None:
    other = tmp_path / f"{name}{UNFINISHED_FOLDER}"
    (tmp_path / "kept").mkdir()
    (tmp_path / f".ours.abcdefg1{UNFINISHED_FOLDER}").symlink_to(tmp_path / "kept")
    (tmp_path / f".ours.abcdefg2{UNFINISHED_FOLDER}").mkdir()
    other.mkdir()
    for each in (other, tmp_path / "kept"):
        (each / "a").write_bytes(b"1")
    before = {*tmp_path.iterdir()}
    atomic_folder(tmp_path / "ours", {"a": b"1"})
    assert {*tmp_path.iterdir()} == {*before, tmp_path / "ours"}
    assert (tmp_path / "kept" / "a").exists()
