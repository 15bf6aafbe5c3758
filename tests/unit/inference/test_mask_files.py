"""Predicted masks as files."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cohortium import Federation
from cohortium.cli import app
from cohortium.data.examples import DataSpec, Examples
from cohortium.data.file_reader import FileImage
from cohortium.errors import DataError, RequestError, RunError
from cohortium.inference import mask_files
from cohortium.inference.classifier import Classifier
from cohortium_nifti import NiftiDataset
from cohortium_nifti._masks import encode_mask
from cohortium_nifti._reader import read_mask, read_nifti
from cohortium_phantom import PhantomFields
from cohortium_segmentation import Segmentation
from cohortium_table import TableDataset
from cohortium_unet import UNet
from tests.support.federations import tiny_federation
from tests.support.nifti_files import saved

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


def images_of(run: Path) -> Examples:
    dataset = Federation.read(run / "study.toml").dataset
    assert dataset is not None
    test = dataset.load().test
    assert test is not None
    return test


def flat_study(folder: Path, *, size: tuple[int, int] | None) -> Path:
    """Train on PNG files that a table lists, and return the run's folder."""
    rng = np.random.default_rng(0)
    lines = ["path,mask,split"]
    for k in range(8):
        # Without a declared size, all files have one.
        shape = (16, 16) if size is None else (20 + 4 * (k % 2), 28)
        image = rng.integers(0, 255, shape).astype(np.uint8)
        Image.fromarray(image).save(folder / f"{k}.png")
        Image.fromarray((image > 127).astype(np.uint8)).save(folder / f"{k}-mask.png")
        lines.append(f"{k}.png,{k}-mask.png,{'test' if k > 5 else 'train'}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    tiny_federation(
        dataset=TableDataset(
            path=str(folder / "table.csv"), mask="mask", split="split", size=size,
            task=Segmentation(("ground", "cell")),
        ),
        model=UNet(width=2, depth=1),
        sites=2,
        rounds=1,
    ).run(folder / "run")  # fmt: skip
    return folder / "run"


def test_mask_has_size_of_resized_image(tmp_path: Path) -> None:
    run = flat_study(tmp_path, size=(16, 16))
    command = ["predict", str(run), str(tmp_path / "6.png"), str(tmp_path / "7.png")]
    outcome = CliRunner().invoke(app, [*command, "--json", "--masks", str(tmp_path / "masks")])
    assert outcome.exit_code == 0, outcome.output
    files = [row["mask"] for row in json.loads(outcome.stdout)]
    test = images_of(run)
    small = Classifier.open(run).predict(test.images)
    for file, mask, size in zip(files, small, ((20, 28), (24, 28)), strict=True):
        with Image.open(tmp_path / "masks" / file) as image:
            found = np.array(image)
        assert found.shape == size
        nearest = Image.fromarray(mask.astype(np.uint8)).resize(
            size[::-1], Image.Resampling.NEAREST
        )
        assert np.array_equal(found, np.array(nearest))


LEFT_BACK_FEET = np.diag([-2.0, -1.5, -3.0, 1.0])


def volume_study(folder: Path, *, plane: str = "") -> Path:
    """Train on NIfTI files in another order of axes than the reader's, and return the run."""
    rng = np.random.default_rng(0)
    lines = ["path,mask,split"]
    affine = LEFT_BACK_FEET[[2, 0, 1, 3]]
    affine[:3, 3] = (5, -7, 11)
    for k in range(6):
        image = rng.integers(0, 255, (8, 4, 1 if plane else 8)).astype(np.int16)
        saved(folder / f"{k}.nii.gz", image, affine)
        saved(folder / f"{k}-mask.nii.gz", (image > 127).astype(np.uint8), affine)
        lines.append(f"{k}.nii.gz,{k}-mask.nii.gz,{'test' if k > 3 else 'train'}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    tiny_federation(
        dataset=NiftiDataset(
            path=str(folder / "table.csv"), mask="mask", split="split", plane=plane,  # type: ignore[arg-type]
            intensity_range=(0, 255), task=Segmentation(("ground", "lesion")),
        ),
        model=UNet(width=2, depth=1),
        sites=2,
        rounds=1,
    ).run(folder / "run")  # fmt: skip
    return folder / "run"


@pytest.mark.parametrize("plane", ["", "sagittal"])
def test_mask_of_nifti_file_lies_on_it(tmp_path: Path, plane: str) -> None:
    run = volume_study(tmp_path, plane=plane)
    source = tmp_path / "5.nii.gz"
    command = ["predict", str(run), str(tmp_path / "4.nii.gz"), str(source), "--json"]
    outcome = CliRunner().invoke(app, [*command, "--masks", str(tmp_path / "masks")])
    assert outcome.exit_code == 0, outcome.output
    files = [row["mask"] for row in json.loads(outcome.stdout)]
    assert files == ["000000-4-nii-gz.nii.gz", "000001-5-nii-gz.nii.gz"]
    made: Any = nibabel.load(tmp_path / "masks" / files[1])
    image: Any = nibabel.load(source)
    assert made.shape == image.shape
    assert np.array_equal(made.affine, image.affine)
    for name in ("qform_code", "sform_code", "xyzt_units"):
        assert made.header[name] == image.header[name]
    assert np.array_equal(made.header["pixdim"][:4], image.header["pixdim"][:4])
    assert made.get_data_dtype() == np.uint8
    # Read as a mask of that image, it is the prediction of the model.
    pixels = read_nifti(source)
    mask = read_mask(tmp_path / "masks" / files[1], image=pixels)
    test = images_of(run)
    assert np.array_equal(np.squeeze(mask), Classifier.open(run).predict(test.images)[1])
    assert len(np.unique(mask)) == 2


def test_mask_of_nifti_file_repeats_no_text(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4))
    image.header["descrip"] = b"Jane Doe"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    image.to_filename(tmp_path / "a.nii")
    content = gzip.decompress(encode_mask(tmp_path / "a.nii", np.ones((4, 4, 4), np.uint8), None))
    assert b"Jane" not in content
    assert content.count(b"\x01" * 64) == 1


def test_volume_of_other_size_is_refused_for_masks() -> None:
    spec = DataSpec(
        examples=1, task=Segmentation(("a", "b")), channels=1, size=(4, 8, 8), pixel_type="uint8"
    )  # fmt: skip
    source = FileImage(pixels=np.zeros((1, 4, 8, 8), np.uint8), size=(9, 8, 8))
    with pytest.raises(RequestError, match=r"9 × 8 × 8 voxels, to which no mask of 4 × 8 × 8 can"):
        mask_files.require_mappable("scan", source, spec)


def test_file_of_other_kind_is_refused_with_suffixes(tmp_path: Path) -> None:
    run = flat_study(tmp_path, size=None)
    (tmp_path / "a.nii").write_bytes(b"")
    with pytest.raises(DataError, match=r"end in \.jpeg or \.jpg or \.png or \.npy or \.tif"):
        CliRunner().invoke(
            app, ["predict", str(run), str(tmp_path / "a.nii")], catch_exceptions=False
        )
