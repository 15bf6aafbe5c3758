"""DICOM files that a table lists become splits, or are refused with line and path."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cohortium import Federation
from cohortium.errors import StudyError
from cohortium.plugin import Dataset, GroupColumn, pseudonyms
from cohortium_dicom import DicomDataset, Window, cohortium_datasets
from cohortium_segmentation import Segmentation
from cohortium_table import TableDataset
from tests.support.dicom_files import PATIENT, saved
from tests.support.federations import tiny_federation
from tests.support.image_files import write_files
from tests.support.pneumonia import first_images
from tests.support.refusals import refuse_table

HEAD = ("path", "label", "place", "part")
ROWS: list[tuple[str, ...]] = [
    ("1.dcm", "x", "10", "test"),
    ("2", "y", "9", "train"),
    ("a/3.dcm", "x", "10", "train"),
    ("a/4.ima", "y", "9", "val"),
]
COLUMNS: dict[str, Any] = {"site": "place", "split": "part", "window": "file"}
AXIAL = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]


def table(folder: Path, rows: Sequence[tuple[str, ...]], head: tuple[str, ...] = HEAD) -> str:
    with (folder / "ct.csv").open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return str(folder / "ct.csv")


def put(folder: Path, rows: Sequence[tuple[str, ...]] = ROWS) -> str:
    (folder / "a").mkdir(exist_ok=True)
    for number, row in enumerate(ROWS, 1):
        pixels = np.full((6, 4), number, np.uint8)
        saved(folder / row[0], pixels, PatientID=f"{PATIENT}-{number // 2}")
    return table(folder, rows)


def series(folder: Path, volume: NDArray[Any], *, seed: int = 0, **elements: Any) -> Path:
    """The slices of a volume, in files whose names are in another order."""
    folder.mkdir(parents=True, exist_ok=True)
    names = np.random.default_rng(seed).permutation(len(volume))
    for number, (name, pixels) in enumerate(zip(names, volume, strict=True)):
        saved(
            folder / f"{name}.dcm", pixels, ImagePositionPatient=[0, 0, 2.5 * number],
            ImageOrientationPatient=AXIAL, PixelSpacing=[1, 1], **elements,
        )  # fmt: skip
    return folder


def test_columns_become_splits_in_order(tmp_path: Path) -> None:
    splits = DicomDataset(path=put(tmp_path), **COLUMNS).load()
    assert (splits.name, splits.classes) == ("ct", ("x", "y"))
    assert splits.train.images.shape == (2, 1, 6, 4)
    assert splits.train.images.dtype == np.uint8
    assert splits.train.images.max(axis=(1, 2, 3)).tolist() == [2, 3]
    assert splits.train.labels.tolist() == [1, 0]
    assert splits.train.clients is not None
    assert splits.train.clients.tolist() == [0, 1]
    assert splits.train.patients is None
    assert splits.validation is not None
    assert splits.test is not None
    assert splits.test.images.max() == 1


def test_group_columns_follow_files_and_series(tmp_path: Path) -> None:
    volumes = np.arange(3 * 4 * 6 * 5, dtype=np.uint8).reshape(3, 4, 6, 5)
    for number, volume in enumerate(volumes):
        series(tmp_path / f"s{number}", volume, seed=number)
    rows = [
        ("s0", "x", "f", "", "train"),
        ("s1", "y", "m", "B", "test"),
        ("s2", "x", "m", "A", "train"),
    ]
    path = table(tmp_path, rows, ("path", "label", "sex", "scanner", "part"))
    dataset = DicomDataset(path=path, groups=("sex", "scanner"), split="part", window="file")
    splits = dataset.load()
    assert splits.groups == (GroupColumn("sex", ("f", "m")), GroupColumn("scanner", ("A", "B")))
    assert splits.train.groups is not None
    assert splits.test is not None
    assert splits.test.groups is not None
    assert splits.train.groups.tolist() == [[0, -1], [1, 0]]
    assert splits.test.groups.tolist() == [[1, 1]]


def test_patients_of_headers_become_keyed_numbers(tmp_path: Path) -> None:
    path = put(tmp_path)
    dataset = DicomDataset(path=path, **COLUMNS, patients="header", patient_key="key")
    splits = dataset.load()
    secret = bytes.fromhex((tmp_path / "key").read_text())
    assert splits.train.patients is not None
    numbers = pseudonyms([f"{PATIENT}-1", f"{PATIENT}-0"], secret).tolist()
    assert splits.train.patients.tolist() == numbers[:1] * 2
    assert splits.test is not None
    assert splits.test.patients is not None
    assert splits.test.patients.tolist() == numbers[1:]
    assert "DOE" not in repr(splits)
    saved(tmp_path / "2", np.zeros((6, 4), np.uint8), PatientID=" ")
    refuse_table(dataset, r"line 3: .*2 has no PatientID; leave it out")


def test_patients_of_a_column_are_read(tmp_path: Path) -> None:
    put(tmp_path)
    path = table(tmp_path, [("1.dcm", "x", "P-1"), ("2", "y", "P-1")], ("path", "label", "who"))
    found = DicomDataset(path=path, patient="who", window="file").load().train.patients
    assert found is not None
    assert found.tolist() == [0, 0]


def test_window_and_stored_values_are_declared(tmp_path: Path) -> None:
    values = np.array([[0, 1024], [1064, 2000]], np.uint16)
    scaling = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    saved(tmp_path / "1.dcm", values, **scaling)
    saved(tmp_path / "2.dcm", values.T, **scaling)
    path = table(tmp_path, [("1.dcm", "x"), ("2.dcm", "y")], ("path", "label"))
    shown = DicomDataset(path=path, window=Window(center=40, width=400)).load()
    assert shown.train.images.dtype == np.uint8
    assert shown.train.images[0, 0, 0].tolist() == [0, 102]
    stored = DicomDataset(path=path, intensity_range=(-1000, 1000)).load()
    assert stored.train.images.dtype == np.int16
    assert stored.train.images[0, 0].tolist() == [[-1024, 0], [40, 976]]
    assert stored.spec.intensity_range == (-1000, 1000)
    words = "line 2: .*1.dcm has values from -1024 to 976, and uint16 holds"
    refuse_table(DicomDataset(path=path, intensity_range=(0, 1), dtype="uint16"), words)
    refuse_table(
        DicomDataset(path=path, window="file"), r"line 2: .*1\.dcm has no window of its own"
    )


def test_colours_become_channels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        saved(tmp_path / f"{number}.dcm", image, photometric="RGB")
    path = table(tmp_path, [("0.dcm", "x"), ("1.dcm", "y")], ("path", "label"))
    found = DicomDataset(path=path, window="file").load().train.images
    assert np.array_equal(found, np.moveaxis(pixels, -1, 1))


def test_declared_size_resizes_flat_images(tmp_path: Path) -> None:
    path = put(tmp_path)
    saved(tmp_path / "2", np.full((9, 9), 2, np.uint8))
    assert DicomDataset(path=path, **COLUMNS, size=(3, 2)).load().train.images.shape[1:] == (
        1, 3, 2,
    )  # fmt: skip
    refuse_table(
        DicomDataset(path=path, **COLUMNS),
        r"line 4: .*a/3\.dcm has .* 6 × 4 .* and .*2 has .* 9 × 9 .*; declare size",
    )


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("9.dcm", r"line 3: there is no file or folder .*9\.dcm"),
        ("../1.dcm", "line 3: the path .* leaves the folder"),
        ("1.dcm", r"line 3: .*1\.dcm is listed in line 2 too"),
        ("text.dcm", r"line 3: .*text\.dcm is no DICOM file"),
        ("cut.dcm", r"line 3: .*cut\.dcm.*; copy the file anew"),
        ("header.dcm", r"line 3: .*header\.dcm: its header cannot be read"),
        ("frames.dcm", r"line 3: .*frames\.dcm holds 2 frames; declare frames = true"),
        ("wide.dcm", r"line 3: .*wide\.dcm has .* 6 × 5 .*1\.dcm has .* 6 × 4"),
        ("a", r"line 4: .*a/3\.dcm lies in the folder that line 3 lists"),
        ("empty", r"line 3: .*empty has no files"),
        ("outer", r"line 3: .*inner is a folder among the slices"),
        ("mixed", r"line 3: .*mixed.* differs from .* in series"),
        ("text", r"line 3: .*note\.txt is no DICOM file"),
        ("linked", r"line 3: .*link leaves its folder"),
    ],
)
def test_faulty_row_is_refused_with_line_and_path(tmp_path: Path, row: str, words: str) -> None:
    path = put(tmp_path)
    good = (tmp_path / "1.dcm").read_bytes()
    (tmp_path / "text.dcm").write_text(f"{PATIENT}\n" * 40)
    (tmp_path / "cut.dcm").write_bytes(good[:-9])
    saved(tmp_path / "header.dcm", np.zeros((6, 4), np.uint8), PatientID=PATIENT)
    damaged = (tmp_path / "header.dcm").read_bytes()
    (tmp_path / "header.dcm").write_bytes(damaged.replace(b"US\x02\x00\x06\x00", b"ZZ\x02\x00??"))
    saved(tmp_path / "frames.dcm", np.zeros((2, 6, 4), np.uint8))
    saved(tmp_path / "wide.dcm", np.zeros((6, 5), np.uint8))
    for name in ("empty", "outer/inner", "text", "linked"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "text" / "note.txt").write_text(PATIENT)
    (tmp_path / "linked" / "link").symlink_to(tmp_path / "1.dcm")
    series(tmp_path / "mixed", np.zeros((2, 6, 4), np.uint8))
    saved(
        tmp_path / "mixed" / "2.dcm", np.zeros((6, 4), np.uint8), SeriesInstanceUID="9",
        ImagePositionPatient=[0, 0, 9], ImageOrientationPatient=AXIAL, PixelSpacing=[1, 1],
    )  # fmt: skip
    path = table(tmp_path, [ROWS[0], (row, *ROWS[1][1:]), *ROWS[2:]])
    refuse_table(DicomDataset(path=path, window="file"), words)


def test_shuffled_series_become_volumes(tmp_path: Path) -> None:
    volumes = np.random.default_rng(0).integers(-900, 900, (2, 5, 4, 3), dtype=np.int16)
    for number, volume in enumerate(volumes):
        series(tmp_path / f"s{number}", volume, seed=number, PatientID=f"{PATIENT}{number}")
    (tmp_path / "s0" / ".DS_Store").write_bytes(b"?")
    (tmp_path / "s0" / "Thumbs.db").write_bytes(b"?")
    path = table(tmp_path, [("s0", "x"), ("s1/", "y")], ("path", "label"))
    options: dict[str, Any] = {"path": path, "intensity_range": (-1000, 1000)}
    splits = DicomDataset(**options, patients="header", patient_key="key").load()
    assert np.array_equal(splits.train.images, volumes[:, None])
    assert splits.spec.size == (5, 4, 3)
    assert splits.train.patients is not None
    assert len(set(splits.train.patients.tolist())) == 2
    refuse_table(
        DicomDataset(**options, size=(2, 2)), r"line 2: .*s0 is a volume, and size = \[2, 2\]"
    )
    (tmp_path / "s1" / "2.dcm").unlink()
    refuse_table(DicomDataset(**options), r"line 3: .*mm")


def test_series_beyond_the_bound_is_refused_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series(tmp_path / "s", np.zeros((4, 4, 4), np.uint8))
    (tmp_path / "s" / "3.dcm").write_bytes(b"?")
    path = table(tmp_path, [("s", "x")], ("path", "label"))
    monkeypatch.setattr("cohortium_dicom._series.MAX_VALUES", 50)
    dataset = DicomDataset(path=path, classes=("x", "y"), window="file")
    refuse_table(dataset, "line 2: .*s has 4 files like .*0.dcm, more than 50 values")


def test_frames_become_volumes(tmp_path: Path) -> None:
    volumes = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 4), dtype=np.uint8)
    for number, volume in enumerate(volumes):
        saved(tmp_path / f"{number}.dcm", volume)
    path = table(tmp_path, [("0.dcm", "x"), ("1.dcm", "y")], ("path", "label"))
    found = DicomDataset(path=path, window="file", frames=True).load().train.images
    assert np.array_equal(found, volumes[:, None])


def test_masks_are_pictures_or_arrays(tmp_path: Path) -> None:
    put(tmp_path)
    masks = np.random.default_rng(0).integers(0, 3, (2, 6, 4), dtype=np.uint8)
    Image.fromarray(masks[0]).save(tmp_path / "m.png")
    np.save(tmp_path / "m.npy", masks[1])
    head = ("path", "outline")
    path = table(tmp_path, [("1.dcm", "m.png"), ("2", "m.npy")], head)
    options: dict[str, Any] = {"mask": "outline", "task": Segmentation(), "window": "file"}
    assert np.array_equal(DicomDataset(path=path, **options).load().train.labels, masks)
    np.save(tmp_path / "m.npy", masks[1, :5])
    words = r"line 3: .*m\.npy has 5 × 4 labels, and its image .*2 has 6 × 4 pixels"
    refuse_table(DicomDataset(path=path, **options, size=(6, 4)), words)


def test_masks_of_volumes_have_their_slices(tmp_path: Path) -> None:
    volume = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    mask = (volume % 2).astype(np.uint8)
    series(tmp_path / "s", volume)
    np.save(tmp_path / "m.npy", mask)
    first, *others = (Image.fromarray(page) for page in mask)
    first.save(tmp_path / "m.tif", save_all=True, append_images=others)
    rows = [("s", "m.npy"), ("s", "m.tif")]
    path = table(tmp_path, rows, ("path", "outline"))
    splits = DicomDataset(
        path=path, mask="outline", task=Segmentation(), window="file", repeats=True
    ).load()
    assert np.array_equal(splits.train.labels, np.stack([mask, mask]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": "file", "path": ""}, "dicom: path is ''"),
        ({}, "declare either a window"),
        ({"window": "file", "intensity_range": (0, 1)}, "declare either a window"),
        ({"window": "mine"}, "dicom: window is 'mine'; give center and width, or 'file'"),
        ({"window": "file", "dtype": "int8"}, "dicom: dtype is 'int8'; let it be one of 'uint8'"),
        ({"window": "file", "patients": "x"}, "dicom: patients is 'x'"),
        ({"window": "file", "patients": "header"}, "needs a patient_key"),
        (
            {"window": "file", "patients": "header", "patient_key": "k", "patient": "p"},
            "no column patient",
        ),
        ({"window": "file", "label": "a", "mask": "b"}, "dicom: label, labels and mask"),
    ],
)
def test_invalid_parameters_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(StudyError, match=words):
        DicomDataset(**({"path": "a.csv"} | options))


def test_plugin_is_offered_as_dataset() -> None:
    (offer,) = cohortium_datasets()
    assert (offer.name, offer.local_parameters) == ("dicom", ("path", "root", "patient_key"))
    assert isinstance(offer.factory(path="a.csv", window="file"), Dataset)


@pytest.mark.parametrize("window", ["file", Window(center=40, width=400), None])
def test_study_reads_its_own_text(tmp_path: Path, window: Any) -> None:
    dataset = DicomDataset(
        path=put(tmp_path), window=window, intensity_range=None if window else (-1000, 1000)
    )
    study = tiny_federation(dataset=dataset)
    (tmp_path / "study.toml").write_text(study.as_toml(), "utf-8")
    assert Federation.read(tmp_path / "study.toml") == study


@pytest.mark.parametrize(
    ("window", "words"),
    [
        ("{center=40, width=0.5}", "window: the window's width is 0.5; give at least 1"),
        ("{center=40, with=400}", "window: with is unknown; did you mean width"),
    ],
)
def test_study_with_faulty_window_is_refused(tmp_path: Path, window: str, words: str) -> None:
    text = tiny_federation(dataset=DicomDataset(path=put(tmp_path), window="file")).as_toml()
    changed = text.replace('window = "file"', f"window = {window}")
    assert changed != text
    (tmp_path / "study.toml").write_text(changed, "utf-8")
    with pytest.raises(StudyError, match=words):
        Federation.read(tmp_path / "study.toml")


@pytest.mark.data
@pytest.mark.slow
def test_real_images_train_to_the_same_weights(tmp_path: Path) -> None:
    npz = first_images(tmp_path)
    given = npz.load()
    paths = {
        "png": write_files(given, tmp_path / "png"),
        "dicom": write_files(given, tmp_path / "dicom", suffix=".dcm", save=saved),
    }
    roots: dict[str, dict[str, Any]] = {
        name: {"path": str(path), "root": str(path.with_suffix("")), "split": "split"}
        for name, path in paths.items()
    }
    datasets: dict[str, Any] = {
        "npz": npz,
        "png": TableDataset(**roots["png"]),
        "dicom": DicomDataset(window="file", **roots["dicom"]),
    }
    weights = {
        tiny_federation(dataset=dataset, sites=3).run(tmp_path / f"run-{name}").weights_sha256
        for name, dataset in datasets.items()
    }
    assert len(weights) == 1
