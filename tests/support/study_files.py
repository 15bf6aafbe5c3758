"""A small study on disk, with class names that no narrow encoding has."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = ("gutartig, vergrößert", "第三级", "ε ≤ 1")
STUDY = """
[federation]
sites = 2
rounds = 2
threads = 1
[dataset]
name = "npz"
path = "data.npz"
[partitioner]
name = "iid"
[model]
name = "cnn"
width = 4
[trainer]
name = "fedsgd"
[privatizer]
name = "gaussian"
epsilon = 50.0
delta = 1e-3
clip_norm = 1.0
[aggregator]
name = "plain"
"""
GRID = STUDY + '\n[grid]\n"federation.rounds" = [1, 2]\n'
PATHS = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
"""Of the code under test, where it is not what is installed."""


def write_files(folder: Path) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, n in (("train", 60), ("val", 12), ("test", 12)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 8, 8)).astype(np.uint8)
        arrays[f"{split}_labels"] = (np.arange(n) % 3).astype(np.uint8)
    np.savez(folder / "data.npz", classes=np.array(CLASSES), **arrays)
    (folder / "study.toml").write_text(STUDY, "utf-8")
    (folder / "grid.toml").write_text(GRID, "utf-8")
