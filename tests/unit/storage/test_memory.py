"""How much memory there is, as a machine and its control groups tell it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cohortium.data import memory, npz, npz_archive
from cohortium.errors import DataError


def machine(folder: Path, *, free: int, groups: str = "") -> tuple[Path, Path]:
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable:    {free} kB\n")
    (folder / "proc/self/cgroup").write_text(groups)
    (folder / "cgroup").mkdir()
    return folder / "proc", folder / "cgroup"


def test_available_memory_matches_meminfo(tmp_path: Path) -> None:
    assert memory.available(*machine(tmp_path, free=2048)) == 2 << 20


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "4096\n"}, 4096),
        ("0::/\n", {"memory.max": "8192\n"}, 8192),
        ("0::/told/from/outside\n", {"memory.max": "8192\n"}, 8192),
        ("4:cpu,memory:/a\n", {"memory/a/memory.limit_in_bytes": "512\n"}, 512),
        ("4:cpu:/a\n", {"memory/a/memory.limit_in_bytes": "512\n"}, 2 << 20),
        ("torn", {}, 2 << 20),
    ],
)
def test_control_group_limits_available_memory(
    groups: str, files: dict[str, str], expected: int, tmp_path: Path
) -> None:
    processes, limits = machine(tmp_path, free=2048, groups=groups)
    for name, text in files.items():
        (limits / name).parent.mkdir(parents=True, exist_ok=True)
        (limits / name).write_text(text)
    assert memory.available(processes, limits) == expected


def test_available_memory_falls_back_without_proc(tmp_path: Path) -> None:
    assert memory.available(tmp_path / "no", tmp_path / "none") > 1 << 20


def test_npz_exceeding_available_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.npz"
    zeros = np.zeros((2000, 28, 28), np.uint8)
    np.savez_compressed(path, train_images=zeros, train_labels=np.arange(2000) % 2)
    assert len(npz.read_npz_splits(path, name="x").train) == 2000
    monkeypatch.setattr(npz_archive, "available", lambda: 2 << 20)

    def unpack(*_: object) -> None:
        pytest.fail("it was unpacked")

    monkeypatch.setattr(npz_archive, "_array", unpack)
    with pytest.raises(DataError, match="in the memory there is; split it"):
        npz.read_npz_splits(path, name="x")
