"""NIfTI files that a table lists become splits, or are refused with line and path."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cohortium import Federation
from cohortium.errors import DataError, StudyError
from cohortium.plugin import Dataset, DataSurvey, GroupColumn
from cohortium_nifti import NiftiDataset, cohortium_datasets
from cohortium_segmentation import Segmentation
from cohortium_unet import UNet
from tests.support.federations import tiny_federation
from tests.support.image_files import write_files
from tests.support.nifti_files import saved
from tests.support.pneumonia import first_images
from tests.support.refusals import refuse_table

PATIENT = "DOE^JANE-4711"
ROWS = [("1.nii", "x"), ("2.nii.gz", "y"), ("3.nii", "x")]
VOXELS = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 6), dtype=np.uint8)


def table(
    folder: Path, rows: Sequence[tuple[str, ...]], head: tuple[str, ...] = ("path", "label")
) -> str:
    with (folder / "mr.csv").open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return str(folder / "mr.csv")


def put(folder: Path, rows: Sequence[tuple[str, ...]] = ROWS) -> str:
    for (name, _), voxels in zip(ROWS, VOXELS, strict=True):
        saved(folder / name, voxels)
    return table(folder, rows)


def test_volumes_keep_their_axes(tmp_path: Path) -> None:
    splits = NiftiDataset(path=put(tmp_path)).load()
    assert np.array_equal(splits.train.images, VOXELS[:, None])
    assert (splits.name, splits.classes, splits.spec.size) == ("mr", ("x", "y"), (4, 5, 6))
    # A file whose first axis runs to the left is turned.
    saved(tmp_path / "3.nii", VOXELS[2, ::-1], np.diag([-1.0, 1, 1, 1]))
    assert np.array_equal(NiftiDataset(path=str(tmp_path / "mr.csv")).load().train.images[2, 0],
                          VOXELS[2])  # fmt: skip


def test_columns_become_splits(tmp_path: Path) -> None:
    put(tmp_path)
    rows = [
        ("1.nii", "x", "P-2", "10", "test"),
        ("2.nii.gz", "y", "P-2", "9", "train"),
        ("3.nii", "x", "P-1", "10", "train"),
    ]
    path = table(tmp_path, rows, ("path", "label", "who", "place", "part"))
    options: dict[str, Any] = {"patient": "who", "site": "place", "split": "part"}
    splits = NiftiDataset(path=path, **options).load()
    assert np.array_equal(splits.train.images, VOXELS[1:, None])
    assert splits.train.patients is not None
    assert splits.train.clients is not None
    assert splits.train.patients.tolist() == [0, 1]
    assert splits.train.clients.tolist() == [0, 1]
    keyed = NiftiDataset(path=path, **options, patient_key="key").load()
    assert keyed.train.patients is not None
    assert keyed.train.patients.min() > 1


def test_group_columns_follow_their_files(tmp_path: Path) -> None:
    put(tmp_path)
    rows = [
        ("1.nii", "x", "m", "60-69", "test"),
        ("2.nii.gz", "y", "", "70-79", "train"),
        ("3.nii", "x", "f", "60-69", "train"),
    ]
    path = table(tmp_path, rows, ("path", "label", "sex", "age", "part"))
    dataset = NiftiDataset(path=path, groups=("sex", "age"), split="part")
    splits = dataset.load()
    assert splits.groups == (GroupColumn("sex", ("f", "m")), GroupColumn("age", ("60-69", "70-79")))
    assert splits.train.groups is not None
    assert splits.test is not None
    assert splits.test.groups is not None
    assert splits.train.groups.tolist() == [[-1, 1], [0, 0]]
    assert splits.test.groups.tolist() == [[1, 0]]
    # A refused file takes its own groups with it, and no other's.
    (tmp_path / "2.nii.gz").write_bytes(b"?")
    readable = dataset.load_readable(DataSurvey())
    assert readable.train.groups is not None
    assert readable.train.groups.tolist() == [[0, 0]]


def test_volumes_of_a_file_are_channels(tmp_path: Path) -> None:
    for name in ("1.nii", "2.nii.gz"):
        saved(tmp_path / name, np.stack([VOXELS[0], VOXELS[1]], axis=-1))
    path = table(tmp_path, ROWS[:2])
    splits = NiftiDataset(path=path, channels=2).load()
    assert np.array_equal(splits.train.images[0], VOXELS[:2])
    refuse_table(NiftiDataset(path=path), r"line 2: .*1\.nii has 2 volumes, and 1 are declared")


def test_other_spacing_than_the_declared_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path)
    dataset = NiftiDataset(path=path, spacing=(1, 1, 1))
    assert len(dataset.load().train) == 3
    saved(tmp_path / "2.nii.gz", VOXELS[1], np.diag([1, 1, 2.5, 1]))
    refuse_table(dataset, r"line 3: .*2\.nii\.gz has voxels of 1 × 1 × 2\.5 mm, and 1 × 1 × 1 mm")
    assert len(NiftiDataset(path=path).load().train) == 3


@pytest.mark.parametrize(("plane", "axis"), [("sagittal", 0), ("coronal", 1), ("axial", 2)])
def test_one_slice_becomes_flat(tmp_path: Path, plane: Any, axis: int) -> None:
    slices = VOXELS[:, 0]
    for (name, _), voxels in zip(ROWS, slices, strict=True):
        saved(tmp_path / name, np.expand_dims(voxels, axis))
    path = table(tmp_path, ROWS)
    flat = NiftiDataset(path=path, plane=plane).load()
    assert np.array_equal(flat.train.images, slices[:, None])
    assert NiftiDataset(path=path, plane=plane, size=(3, 2)).load().spec.size == (3, 2)
    refuse_table(NiftiDataset(path=path), rf"line 2: .*1\.nii has .* declare plane = '{plane}'")
    other: Any = "axial" if plane != "axial" else "coronal"
    refuse_table(NiftiDataset(path=path, plane=other), rf"line 2: .* are no single {other} slice")


def test_dtype_is_that_of_the_files_or_declared(tmp_path: Path) -> None:
    path = put(tmp_path)
    saved(tmp_path / "2.nii.gz", VOXELS[1].astype(np.int16))
    refuse_table(NiftiDataset(path=path), r"line 3: .* as int16, and .*1\.nii has .* as uint8")
    for dtype in ("uint8", "int16", "uint16", "float32"):
        splits = NiftiDataset(path=path, dtype=dtype, intensity_range=(0, 255)).load()
        assert splits.train.images.dtype == dtype
        assert np.array_equal(splits.train.images, VOXELS[:, None])
    saved(tmp_path / "2.nii.gz", VOXELS[1].astype(np.int16) - 7)
    words = r"line 3: .*2\.nii\.gz has int16 values that uint8 cannot hold"
    refuse_table(NiftiDataset(path=path, dtype="uint8"), words)
    with pytest.raises(DataError, match="'intensity_range' must be declared for int16"):
        NiftiDataset(path=path, dtype="int16").load()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("9.nii", r"line 3: there is no file .*9\.nii"),
        ("../1.nii", "line 3: the path .* leaves the folder"),
        ("1.nii", r"line 3: .*1\.nii is listed in line 2 too"),
        ("pair.img", r"line 3: pair\.img is of no kind that can be read; the kinds are \.nii"),
        ("text.nii", r"line 3: .*text\.nii is no NIfTI file"),
        ("cut.nii", r"line 3: .*cut\.nii has .* bytes, and its header declares"),
        ("packed.nii.gz", r"line 3: .*packed\.nii\.gz cannot be read as NIfTI"),
        ("wide.nii", r"line 3: .*wide\.nii has .* 4 × 5 × 7 .*1\.nii has .* 4 × 5 × 6"),
        ("nan.nii", r"line 3: .*nan\.nii has values that are NaN or infinite"),
    ],
)
def test_faulty_row_is_refused_with_line_and_path(tmp_path: Path, row: str, words: str) -> None:
    put(tmp_path)
    (tmp_path / "text.nii").write_text(f"{PATIENT}\n" * 40)
    (tmp_path / "cut.nii").write_bytes((tmp_path / "1.nii").read_bytes()[:-9])
    (tmp_path / "packed.nii.gz").write_bytes((tmp_path / "1.nii").read_bytes())
    saved(tmp_path / "pair.img", VOXELS[0])
    saved(tmp_path / "wide.nii", np.zeros((4, 5, 7), np.uint8))
    saved(tmp_path / "nan.nii", np.full((4, 5, 6), np.nan, np.float32))
    path = table(tmp_path, [("1.nii", "x", PATIENT), (row, "y", PATIENT), ("3.nii", "x", PATIENT)],
                 ("path", "label", "who"))  # fmt: skip
    refuse_table(NiftiDataset(path=path, patient="who"), words)


def test_masks_are_label_maps(tmp_path: Path) -> None:
    put(tmp_path)
    masks = VOXELS % 3
    for number, mask in enumerate(masks):
        saved(tmp_path / f"m{number}.nii.gz", mask)
    rows = [(name, f"m{number}.nii.gz") for number, (name, _) in enumerate(ROWS)]
    path = table(tmp_path, rows, ("path", "outline"))
    dataset = NiftiDataset(path=path, mask="outline", task=Segmentation(("-", "liver", "tumour")))
    splits = dataset.load()
    assert np.array_equal(splits.train.labels, masks)
    assert splits.classes == ("-", "liver", "tumour")
    saved(tmp_path / "m1.nii.gz", masks[1], np.diag([1, 1, 1.5, 1]))
    refuse_table(dataset, r"line 3: .*m1\.nii\.gz lies elsewhere .* than its image .*2\.nii\.gz")
    saved(tmp_path / "m1.nii.gz", masks[1, :3])
    refuse_table(dataset, r"line 3: .*m1\.nii\.gz has 3 × 5 × 6 labels .* its image .*2\.nii\.gz")


def test_masks_of_slices_train_a_network(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        image = rng.integers(0, 100, (8, 8, 1), dtype=np.uint8)
        image[2:5, number % 4 : number % 4 + 3] += 120
        saved(tmp_path / f"{number}.nii", image)
        saved(tmp_path / f"m{number}.nii", (image > 110).astype(np.uint8))
        rows.append((f"{number}.nii", f"m{number}.nii", "test" if number > 8 else "train"))
    path = table(tmp_path, rows, ("path", "outline", "part"))
    dataset = NiftiDataset(
        path=path, mask="outline", split="part", plane="axial", task=Segmentation()
    )
    model = UNet(width=4, depth=2)
    result = tiny_federation(dataset=dataset, model=model, sites=3).run(tmp_path / "run")
    assert result.scores is not None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": ""}, "nifti: path is ''"),
        ({"spacing": (1, 1)}, "nifti: spacing is"),
        ({"spacing": (1, 1, 0)}, r"nifti: spacing is \(1, 1, 0\); give three lengths"),
        ({"plane": "z"}, "nifti: plane is 'z'; let it be one of '', 'axial'"),
        ({"dtype": "int64"}, "nifti: dtype is 'int64'; let it be one of"),
        ({"labels": ("a",), "mask": "b"}, "nifti: label, labels and mask"),
    ],
)
def test_invalid_parameters_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(StudyError, match=words):
        NiftiDataset(**({"path": "a.csv"} | options))


def test_plugin_is_offered_as_dataset() -> None:
    (offer,) = cohortium_datasets()
    assert (offer.name, offer.local_parameters) == ("nifti", ("path", "root", "patient_key"))
    assert isinstance(offer.factory(path="a.csv"), Dataset)


def test_study_reads_its_own_text(tmp_path: Path) -> None:
    dataset = NiftiDataset(path=put(tmp_path), spacing=(1, 1, 1), dtype="uint8")
    study = tiny_federation(dataset=dataset)
    (tmp_path / "study.toml").write_text(study.as_toml(), "utf-8")
    assert Federation.read(tmp_path / "study.toml") == study


@pytest.mark.data
@pytest.mark.slow
def test_real_images_train_to_the_same_weights(tmp_path: Path) -> None:
    npz = first_images(tmp_path)
    path = write_files(
        npz.load(), tmp_path / "nifti", suffix=".nii.gz",
        save=lambda path, image: saved(path, image[..., None]),
    )  # fmt: skip
    nifti = NiftiDataset(path=str(path), root=str(tmp_path / "nifti"), split="split", plane="axial")
    weights = {
        tiny_federation(dataset=dataset, sites=3).run(tmp_path / f"run-{name}").weights_sha256
        for name, dataset in (("npz", npz), ("nifti", nifti))
    }
    assert len(weights) == 1
