"""Predicted masks as files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cohortium.cli import app
from cohortium.errors import RunError
from cohortium.inference import mask_files
from cohortium.inference.classifier import Classifier
from cohortium_phantom import PhantomFields
from cohortium_unet import UNet
from tests.support.federations import tiny_federation

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "cells"
    tiny_federation(
        dataset=PhantomFields(labels="masks", examples=12, validation=0, test=2),
        model=UNet(width=2, depth=1),
        sites=2,
        rounds=1,
    ).run(folder)
    return folder


def test_predict_writes_mask_of_each_image(run: Path, tmp_path: Path) -> None:
    test = PhantomFields(labels="masks", examples=12, validation=0, test=2).load().test
    assert test is not None
    for folder, image in zip(("a", "b"), test.images, strict=True):
        (tmp_path / folder).mkdir()
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / folder / "same name.png")
    command = ["predict", str(run), str(tmp_path / "a"), str(tmp_path / "b"), "--json"]
    command += ["--masks", str(tmp_path / "masks")]
    outcome = CliRunner().invoke(app, command)
    assert outcome.exit_code == 0, outcome.output
    files = [row["mask"] for row in json.loads(outcome.stdout)]
    assert files == ["000000-same-name-png.png", "000001-same-name-png.png"]
    wanted = Classifier.open(run).predict(test.images)
    for file, mask in zip(files, wanted, strict=True):
        with Image.open(tmp_path / "masks" / file) as image:
            assert image.mode == "P"
            assert np.array_equal(np.array(image), mask)

    again = CliRunner().invoke(app, command)
    assert again.exit_code != 0
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == files


def test_model_without_masks_refuses_them(tmp_path: Path) -> None:
    tiny_federation(rounds=1).run(tmp_path / "run")
    command = ["predict", str(tmp_path / "run"), str(tmp_path), "--masks", str(tmp_path / "masks")]
    assert CliRunner().invoke(app, command).exit_code != 0
    assert not (tmp_path / "masks").exists()


@pytest.mark.parametrize("name", ["../../x.png", "..\\x.png", "/etc/x", "..", "a\x00b", "é" * 300])
def test_hostile_names_stay_in_folder(tmp_path: Path, name: str) -> None:
    (file,) = mask_files.write(tmp_path / "masks", [name], np.zeros((1, 4, 5), np.uint8), start=7)
    assert [path.name for path in tmp_path.rglob("*.png")] == [file]
    assert (tmp_path / "masks" / file).is_file()


def test_masks_of_volumes_are_npy_files(tmp_path: Path) -> None:
    mask = np.arange(24, dtype=np.uint8).reshape(1, 2, 3, 4)
    (file,) = mask_files.write(tmp_path, ["scans.npz#0"], mask, start=0)
    assert file == "000000-scans-npz-0.npy"
    assert np.array_equal(np.load(tmp_path / file), mask[0])


def test_existing_mask_is_not_replaced(tmp_path: Path) -> None:
    mask = np.zeros((1, 4, 4), np.uint8)
    mask_files.write(tmp_path, ["a"], mask, start=0)
    with pytest.raises(RunError, match="cannot write"):
        mask_files.write(tmp_path, ["a"], mask + 1, start=0)
