"""Real images, by the commands that the docs show, cut short."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_server import command


def run(folder: Path, *settings: str) -> dict[str, Any]:
    words = [word for setting in settings for word in ("--set", setting)]
    arguments = ["run", "--json", "--out", "record", *words]
    done = command(*arguments, cwd=folder, environment=os.environ)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


BLOOD = ("dataset.name=npz", "dataset.path=bloodmnist_19.npz", "federation.threads=1")
PNEUMONIA = (
    "dataset.name=medmnist", "dataset.flag=pneumoniamnist", "dataset.download=false",
    "federation.threads=1",
)  # fmt: skip


@pytest.mark.data
@pytest.mark.slow
def test_descriptor_private_run_learns_blood_cells(data_root: Path, tmp_path: Path) -> None:
    result = run(tmp_path, *BLOOD)
    assert result["accuracy"] > 0.8
    assert result["guarantee"]["epsilon"] <= 6


@pytest.mark.data
@pytest.mark.slow
def test_descriptor_without_privacy_exceeds_ninety_percent_accuracy(
    data_root: Path, tmp_path: Path
) -> None:
    result = run(
        tmp_path, *BLOOD, "privatizer.name=none", "trainer.name=fedavg", "trainer.local_epochs=5",
        "trainer.learning_rate=0.002", "trainer.optimizer_options.momentum=0.9",
        "federation.rounds=20",
    )  # fmt: skip
    assert result["accuracy"] > 0.9


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("images", [BLOOD, PNEUMONIA], ids=["blood", "pneumonia"])
@pytest.mark.parametrize("privatizer", ["none", "gaussian"])
def test_dpresnet_trains_on_real_images(
    data_root: Path, tmp_path: Path, images: tuple[str, ...], privatizer: str
) -> None:
    result = run(
        tmp_path, *images, "model.name=dpresnet", "model.width=4", f"privatizer.name={privatizer}",
        "trainer.name=fedavg", "federation.rounds=1",
    )  # fmt: skip
    assert result["rounds"] == 1
    assert (result["guarantee"] is None) == (privatizer == "none")
