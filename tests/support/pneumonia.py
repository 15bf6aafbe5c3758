"""The first images of PneumoniaMNIST, for tests that compare file formats."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from cohortium_npz import Npz


def first_images(folder: Path, *, train: int = 240, others: int = 40) -> Npz:
    """Write the first images of each split to an npz file, and return its data set."""
    data = os.environ.get("COHORTIUM_DATA")
    if not data:
        pytest.skip("COHORTIUM_DATA names no folder of real images")
    counts = {"train": train, "val": others, "test": others}
    with np.load(Path(data) / "pneumoniamnist.npz") as arrays:
        kept = {name: array[: counts[name.split("_")[0]]] for name, array in arrays.items()}
    np.savez(folder / "first.npz", **kept)
    return Npz(path=str(folder / "first.npz"), classes=("normal", "pneumonia"))
