from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cohortium import Federation
from cohortium.errors import DataError, StudyError
from cohortium.plugin import Dataset
from cohortium_multilabel import Multilabel
from cohortium_npz import Npz
from cohortium_segmentation import Segmentation
from cohortium_table import TableDataset, cohortium_datasets
from tests.support.federations import tiny_federation
from tests.support.image_files import write_files

HEAD = ("path", "label", "who", "place", "part")
ROWS: list[tuple[str, ...]] = [
    ("1.png", "x", "P-3", "10", "test"),
    ("2.png", "y", "P-1", "9", "train"),
    ("3.png", "x", "P-3", "10", "Train"),
    ("4.png", "y", "P-2", "9", "val"),
    ("5.png", "x", "P-1", "9", "train"),
]
COLUMNS: dict[str, Any] = {"patient": "who", "site": "place", "split": "part"}


def put(folder: Path, rows: Sequence[tuple[str, ...]], head: tuple[str, ...] = HEAD) -> str:
    for number in range(1, 6):
        pixels = np.full((6, 4), number, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    with (folder / "chest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return str(folder / "chest.csv")


def column(part: Any, name: str) -> list[Any]:
    values = part.images.max(axis=(1, 2, 3)) if name == "images" else getattr(part, name)
    found: list[Any] = values.tolist()
    return found


def test_columns_become_splits_in_order(tmp_path: Path) -> None:
    splits = TableDataset(path=put(tmp_path, ROWS), **COLUMNS).load()
    assert (splits.name, splits.classes) == ("chest", ("x", "y"))
    train = splits.train
    assert column(train, "images") == [2, 3, 5]
    assert column(train, "labels") == [1, 0, 0]
    assert column(train, "clients") == [0, 1, 0]
    assert column(train, "patients") == [1, 0, 1]
    assert train.images.shape == (3, 1, 6, 4)
    assert splits.validation is not None
    assert splits.test is not None
    assert column(splits.validation, "images") == [4]
    # A patient has one number in all splits.
    assert column(splits.test, "patients") == [0]


def test_unnamed_columns_are_not_read(tmp_path: Path) -> None:
    splits = TableDataset(path=put(tmp_path, ROWS), classes=("y", "z", "x")).load()
    assert column(splits.train, "images") == [1, 2, 3, 4, 5]
    assert column(splits.train, "labels") == [2, 0, 2, 0, 2]
    assert (splits.train.clients, splits.train.patients, splits.test) == (None, None, None)


def test_root_is_the_folder_of_files(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    path = Path(put(tmp_path / "files", ROWS)).rename(tmp_path / "chest.csv")
    with pytest.raises(
        DataError, match=r"chest\.csv: all 5 files .* path are missing in .*; set root"
    ):
        TableDataset(path=str(path)).load()
    assert len(TableDataset(path=str(path), root=str(tmp_path / "files")).load().train) == 5
    with pytest.raises(DataError, match=r"there is no folder .*gone"):
        TableDataset(path=str(path), root="gone").load()


def test_patients_are_hashed_with_the_key_of_the_site(tmp_path: Path) -> None:
    path = put(tmp_path, ROWS)
    keyed = TableDataset(path=path, patient="who", patient_key="key")
    first = keyed.load().train
    assert column(first, "patients") == column(keyed.load().train, "patients")
    assert len(set(column(first, "patients"))) == 3
    assert min(column(first, "patients")) > 2
    put(tmp_path, ROWS[1:])
    assert column(keyed.load().train, "patients") == column(first, "patients")[1:]
    (tmp_path / "key").unlink()
    assert not {*column(keyed.load().train, "patients")} & {*column(first, "patients")}


def changed(row: int, place: int, text: str) -> list[tuple[str, ...]]:
    rows = [list(cells) for cells in ROWS]
    rows[row][place] = text
    return [tuple(cells) for cells in rows]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (changed(1, 0, "../1.png"), "line 3: the path .* leaves the folder"),
        (changed(1, 0, "9.png"), "line 3: there is no file"),
        (changed(1, 0, "3.png"), r"line 4: .*3\.png is listed in line 3 too"),
        (changed(1, 0, ""), "line 3: path is empty"),
        (changed(1, 1, ""), "line 3: label is empty"),
        (changed(1, 2, ""), "line 3: who is empty; name the patient of each image"),
        (changed(1, 3, ""), "line 3: place is empty; name the site"),
        (changed(1, 1, "NaN"), "line 3: label is 'NaN', which stands for a missing value; leave"),
        (changed(1, 2, "nan"), "line 3: who is 'nan', which stands for a missing value; name the"),
        (changed(1, 2, "None"), "line 3: who is 'None', which stands for a missing value"),
        (changed(1, 3, "N/A"), "line 3: place is 'N/A', which stands for a missing value"),
        (changed(1, 4, ""), "line 3: part is empty; write train, val or test"),
        (changed(1, 4, "tset"), "line 3: part names no split; did you mean test"),
        ([row for row in ROWS if "rain" not in row[4]], "no row is for training"),
        (changed(4, 0, "notes.txt"), "line 6: notes.txt is of no kind"),
    ],
)
def test_faulty_row_is_refused_with_its_line(
    tmp_path: Path, rows: list[tuple[str, ...]], words: str
) -> None:
    with pytest.raises(DataError, match=words) as caught:
        TableDataset(path=put(tmp_path, rows), **COLUMNS).load()
    assert "\n" not in str(caught.value)
    assert "P-" not in str(caught.value)


def test_faulty_file_is_refused_with_line_and_path(tmp_path: Path) -> None:
    path = put(tmp_path, ROWS)
    (tmp_path / "3.png").write_bytes(b"?")
    with pytest.raises(DataError, match=r"chest\.csv, line 4: .*3\.png is no PNG"):
        TableDataset(path=path).load()
    Image.new("L", (9, 9)).save(tmp_path / "3.png")
    with pytest.raises(DataError, match=r"line 4: .*3\.png has .* 9 × 9 .*1\.png has .* 6 × 4"):
        TableDataset(path=path).load()
    # The first file that is read is the first of training.
    with pytest.raises(DataError, match=r"line 4: .*3\.png has .* 9 × 9 .*2\.png has .* 6 × 4"):
        TableDataset(path=path, split="part").load()


def test_repeated_file_must_stay_in_one_split(tmp_path: Path) -> None:
    path = put(tmp_path, changed(4, 0, "2.png"))
    again = TableDataset(path=path, repeats=True, split="part").load()
    assert column(again.train, "images") == [2, 3, 2]
    path = put(tmp_path, changed(0, 0, "2.png"))
    with pytest.raises(DataError, match=r"line 2: .*2\.png is for test, and in line 3 for train"):
        TableDataset(path=path, repeats=True, split="part").load()


def test_parquet_gives_the_same_splits(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = put(tmp_path, ROWS)
    columns = dict(zip(HEAD, zip(*ROWS, strict=True), strict=True))
    parquet.write_table(pyarrow.table(columns), tmp_path / "chest.parquet")
    one = TableDataset(path=path, **COLUMNS).load()
    other = TableDataset(path=str(tmp_path / "chest.parquet"), **COLUMNS).load()
    assert one.train.fingerprint == other.train.fingerprint
    (tmp_path / "1.png").unlink()
    with pytest.raises(DataError, match=r"chest\.parquet, row 1: there is no file"):
        TableDataset(path=str(tmp_path / "chest.parquet")).load()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": ""}, "table: path is ''"),
        ({"path": "a", "image": ""}, "table: image is ''"),
        ({"path": "a", "delimiter": "|"}, r"delimiter is '\|'; let it be one of 'auto', ','"),
        ({"path": "a", "classes": ("b", "b")}, "a tuple of different texts"),
        ({"path": "a", "resize": "lanczos"}, "resize is 'lanczos'"),
        ({"path": "a", "label": "x", "mask": "y"}, "three kinds of labels; give one of them"),
        ({"path": "a", "labels": ("x", "x")}, "a tuple of different texts"),
    ],
)  # fmt: skip
def test_invalid_parameters_are_refused_by_name(options: dict[str, Any], words: str) -> None:
    with pytest.raises(StudyError, match=words):
        TableDataset(**options)


def test_plugin_is_offered_as_dataset() -> None:
    (offer,) = cohortium_datasets()
    assert (offer.name, offer.local_parameters) == ("table", ("path", "root", "patient_key"))
    assert isinstance(offer.factory(path="a.csv"), Dataset)


def test_study_reads_table_parameters(tmp_path: Path) -> None:
    dataset = TableDataset(path=put(tmp_path, ROWS), size=(8, 8), delimiter="\t", **COLUMNS)
    study = Federation(
        dataset=dataset, model="cnn", trainer="fedavg",
        privatizer="none", aggregator="plain", sites=2, rounds=1,
    )  # fmt: skip
    (tmp_path / "study.toml").write_text(study.as_toml(), "utf-8")
    assert Federation.read(tmp_path / "study.toml") == study


def test_several_findings_are_read(tmp_path: Path) -> None:
    head = ("path", "mass", "fluid")
    rows = [("1.png", "1", ""), ("2.png", "0", "1.0"), ("3.png", "-1", "0")]
    dataset = TableDataset(
        path=put(tmp_path, rows, head), labels=("mass", "fluid"), task=Multilabel()
    )
    splits = dataset.load()
    assert splits.classes == ("mass", "fluid")
    assert column(splits.train, "labels") == [[1, -1], [0, 1], [-1, 0]]
    assert splits.train.labels.dtype == np.int8
    with pytest.raises(DataError, match=r"chest\.csv: mass, fluid has shape \(3, 2\), several"):
        TableDataset(path=dataset.path, labels=("mass", "fluid")).load()


def test_masks_are_read(tmp_path: Path) -> None:
    rows = [("1.png", "a.png", "val"), ("2.png", "a.png", "train"), ("3.png", "b.png", "train")]
    path = put(tmp_path, rows, ("path", "outline", "part"))
    masks = {name: np.zeros((6, 4), np.uint8) for name in ("a", "b")}
    masks["b"][2:4] = 2
    for name, mask in masks.items():
        Image.fromarray(mask).save(tmp_path / f"{name}.png")
    options: dict[str, Any] = {
        "path": path, "mask": "outline", "split": "part", "task": Segmentation()
    }  # fmt: skip
    splits = TableDataset(**options).load()
    np.testing.assert_array_equal(splits.train.labels, np.stack([masks["a"], masks["b"]]))
    assert splits.classes == ("0", "1", "2")
    assert splits.validation is not None
    assert TableDataset(**options, size=(3, 2)).load().train.labels.shape == (2, 3, 2)
    Image.fromarray(masks["b"][:4]).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"line 4: .*b\.png has 4 × 4 .*a\.png has 6 × 4"):
        TableDataset(**options).load()
    Image.fromarray(np.dstack([masks["b"]] * 3)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"line 4: .*b\.png is of mode RGB, which is no mask"):
        TableDataset(**options).load()


def test_deep_images_need_their_range(tmp_path: Path) -> None:
    path = put(tmp_path, ROWS)
    for number in range(1, 6):
        pixels = np.full((6, 4), 1000 * number, np.uint16)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    with pytest.raises(DataError, match=r"'intensity_range' must be declared for uint16"):
        TableDataset(path=path).load()
    splits = TableDataset(path=path, intensity_range=(0, 4095)).load()
    assert splits.train.images.dtype == np.uint16
    assert splits.spec.intensity_range == (0, 4095)


@pytest.mark.data
@pytest.mark.slow
def test_real_images_train_to_the_same_weights(tmp_path: Path) -> None:
    if not os.environ.get("COHORTIUM_DATA"):
        pytest.skip("COHORTIUM_DATA names no folder of real images")
    npz = Npz(path="pneumoniamnist.npz", classes=("normal", "pneumonia"))
    given = npz.load()
    path = write_files(given, tmp_path / "files")
    table = TableDataset(path=str(path), root=str(tmp_path / "files"), split="split")
    found = table.load()
    assert found.classes == given.classes
    for name in ("train", "validation", "test"):
        assert getattr(found, name).fingerprint == getattr(given, name).fingerprint
    weights = [
        tiny_federation(dataset=dataset, rounds=2).run(tmp_path / name).weights_sha256
        for name, dataset in (("npz", npz), ("table", table))
    ]
    assert weights[0] == weights[1]
