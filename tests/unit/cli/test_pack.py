"""`cohortium pack`: a store on which a run gives the same weights."""

from __future__ import annotations

import re
import stat
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from PIL import Image

from cohortium import Federation
from cohortium.data import scratch
from cohortium.data.groups import GroupColumn
from cohortium.data.npz import read_npz_splits
from cohortium.data.packed import compute_digest, stored_digest, write_store
from cohortium.errors import DataError, RequestError, RunError
from cohortium.plugin import Examples, Multiclass, Splits
from tests.support.command_line import cohortium
from tests.support.dicom_files import saved
from tests.support.nifti_files import saved as saved_nifti

RNG = np.random.default_rng(0)
COUNT = 24

STUDY: dict[str, Any] = {
    "federation": {"sites": 2, "rounds": 1},
    "partitioner": {"name": "iid"},
    "model": {"name": "cnn", "width": 2},
    "trainer": {"name": "fedavg", "learning_rate": 0.01},
    "privatizer": {"name": "none"},
    "aggregator": {"name": "plain"},
}


def table(folder: Path, rows: list[str]) -> str:
    (folder / "t.csv").write_text("\n".join(rows))
    return str(folder / "t.csv")


def folder_set(folder: Path) -> dict[str, Any]:
    for k in range(COUNT):
        path = folder / "files" / ("train", "test")[k % 4 == 3] / "abc"[k % 3] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(path)
    return {"name": "folder", "path": str(folder / "files")}


def mask_set(folder: Path) -> dict[str, Any]:
    rows = ["path,mask,who,site,split"]
    for k in range(COUNT):
        image = RNG.integers(0, 60000, (8, 8), dtype=np.uint16)
        Image.fromarray(image).save(folder / f"i{k}.png")
        Image.fromarray(RNG.integers(0, 3, (8, 8), dtype=np.uint8)).save(folder / f"m{k}.png")
        split = ("train", "train", "val", "test")[k % 4]
        rows.append(f"i{k}.png,m{k}.png,P{k // 2},h{k % 3},{split}")
    return {
        "name": "table", "path": table(folder, rows), "mask": "mask", "patient": "who",
        "site": "site", "split": "split", "intensity_range": [100, 50000],
        "task": {"name": "segmentation", "dice_weight": 0.5}, "classes": ["rest", "a", "b"],
    }  # fmt: skip


def dicom_set(folder: Path) -> dict[str, Any]:
    rows = ["path,label,who"]
    for k in range(COUNT):
        saved(folder / f"{k}.dcm", RNG.integers(0, 3000, (8, 8), dtype=np.uint16))
        rows.append(f"{k}.dcm,{'ab'[k % 2]},P{k // 2}")
    return {
        "name": "dicom", "path": table(folder, rows), "patient": "who", "dtype": "int16",
        "intensity_range": [0, 2500], "patient_key": "key",
    }  # fmt: skip


def grouped_rows(suffix: str) -> list[str]:
    """Rows with two columns of groups, of which the second is not always stated."""
    rows = ["path,label,mask,who,site,sex,scanner,split"]
    for k in range(COUNT):
        split = ("train", "train", "val", "test")[k // 2 % 4]
        scanner = ("A", "B", "")[k % 3]
        rows.append(
            f"{k}{suffix},{'ab'[k // 2 % 2]},m{k}{suffix},P{k // 2},h{k % 3},{'fm'[k % 2]},"
            f"{scanner},{split}"
        )
    return rows


COLUMNS: dict[str, Any] = {
    "patient": "who", "site": "site", "groups": ["sex", "scanner"], "split": "split",
}  # fmt: skip


def grouped_dicom_set(folder: Path) -> dict[str, Any]:
    for k in range(COUNT):
        saved(folder / f"{k}.dcm", RNG.integers(0, 3000, (8, 8), dtype=np.uint16))
    return {
        "name": "dicom", "path": table(folder, grouped_rows(".dcm")), **COLUMNS,
        "window": {"center": 1200, "width": 2000},
    }  # fmt: skip


def nifti_set(folder: Path) -> dict[str, Any]:
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    for k in range(COUNT):
        saved_nifti(folder / f"{k}.nii.gz", RNG.integers(-9, 90, (6, 5, 4), np.int16), affine)
    return {
        "name": "nifti", "path": table(folder, grouped_rows(".nii.gz")), **COLUMNS,
        "intensity_range": [0, 80],
    }  # fmt: skip


def nifti_mask_set(folder: Path) -> dict[str, Any]:
    for k in range(COUNT):
        saved_nifti(folder / f"{k}.nii", RNG.random((4, 4, 6, 2), dtype=np.float32))
        saved_nifti(folder / f"m{k}.nii", RNG.integers(0, 3, (4, 4, 6), np.uint8))
    return {
        "name": "nifti", "path": table(folder, grouped_rows(".nii")), **COLUMNS, "mask": "mask",
        "channels": 2, "intensity_range": [0, 1], "task": "segmentation",
        "classes": ["rest", "a", "b"],
    }  # fmt: skip


def finding_set(folder: Path) -> dict[str, Any]:
    rows = ["path,x,y,z"]
    for k in range(COUNT):
        np.save(folder / f"{k}.npy", RNG.random((8, 8), dtype=np.float32))
        rows.append(",".join([f"{k}.npy", *(str(v) for v in RNG.choice([0, 1, -1], 3))]))
    return {
        "name": "table", "path": table(folder, rows), "labels": ["x", "y", "z"],
        "task": "multilabel", "intensity_range": [0, 1],
    }  # fmt: skip


SETS = {
    "folder": folder_set, "masks": mask_set, "dicom": dicom_set, "findings": finding_set,
    "dicom groups": grouped_dicom_set, "nifti": nifti_set, "nifti masks": nifti_mask_set,
}  # fmt: skip


@pytest.mark.parametrize("kind", SETS)
def test_run_on_store_gives_same_weights(tmp_path: Path, kind: str) -> None:
    dataset = SETS[kind](tmp_path)
    study = dict(STUDY)
    if "masks" in kind:
        study["model"] = {"name": "unet", "width": 4, "depth": 1}
    (tmp_path / "study.toml").write_text(tomli_w.dumps({**study, "dataset": dataset}))
    store = tmp_path / "store.npz"
    status, out, err = cohortium("pack", str(tmp_path / "study.toml"), "-o", str(store))
    assert (status, err) == (0, "")
    assert stat.S_IMODE(store.stat().st_mode) == 0o600
    digest = re.search(r"sha256  ([0-9a-f]{64})", out)
    assert digest is not None
    assert digest[1] == stored_digest(store) == compute_digest(store)
    printed = tomllib.loads(out[out.index("[dataset]") :])
    (tmp_path / "packed.toml").write_text(tomli_w.dumps({**study, **printed}))
    original = Federation.read(tmp_path / "study.toml")
    packed = Federation.read(tmp_path / "packed.toml")
    assert original.dataset is not None
    assert packed.dataset is not None
    assert packed.dataset.load().spec == original.dataset.load().spec
    found, wanted = packed.run(), original.run()
    assert found.weights_sha256 == wanted.weights_sha256
    if wanted.scores is not None:
        assert found.scores == wanted.scores
        names = [part.name for part in wanted.scores.groups]
        if "groups" in dataset:
            assert names == ["centre", "sex", "scanner"]


def test_refused_files_stop_packing_unless_skipped(tmp_path: Path) -> None:
    folder_set(tmp_path)
    files, store = tmp_path / "files", tmp_path / "store.npz"
    for k in range(2):
        (files / "train" / "a" / f"broken{k}.png").write_bytes(b"?")
    with pytest.raises(DataError, match=r"2 files of folder cannot be read, so nothing is packed"):
        cohortium("pack", str(files), "-o", str(store))
    assert not store.exists()
    status, out, err = cohortium("pack", str(files), "-o", str(store), "--skip-refused")
    assert status == 0
    assert "left out  2" in out
    assert err.count("refused:") == 2
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_check_finds_an_altered_store(tmp_path: Path) -> None:
    folder_set(tmp_path)
    store = tmp_path / "store.npz"
    cohortium("pack", str(tmp_path / "files"), "-o", str(store))
    assert cohortium("pack", str(store), "--check")[0] == 0
    with np.load(store) as arrays:
        altered = {name: array.copy() for name, array in arrays.items()}
    altered["train_labels"][0] = 1 - altered["train_labels"][0]
    np.savez(store, **altered)
    status, _, err = cohortium("pack", str(store), "--check")
    assert status == 1
    assert "has changed since it was packed" in err
    del altered["sha256"]
    np.savez(store, **altered)
    with pytest.raises(DataError, match="holds no digest"):
        cohortium("pack", str(store), "--check")


def test_existing_file_is_never_replaced(tmp_path: Path) -> None:
    folder_set(tmp_path)
    store = tmp_path / "store.npz"
    store.write_text("mine")
    with pytest.raises(RequestError, match="exists already"):
        cohortium("pack", str(tmp_path / "files"), "-o", str(store))
    with pytest.raises(RunError, match="cannot write"):
        write_store(made(), store)
    assert store.read_text() == "mine"
    with pytest.raises(RequestError, match=r"ends in \.npz"):
        cohortium("pack", str(tmp_path / "files"), "-o", str(tmp_path / "store.bin"))


def made(**changes: Any) -> Splits:
    images = RNG.integers(0, 4000, (9, 3, 6, 5), dtype=np.uint16)
    task = Multiclass(("a", "b"))
    train = Examples(images, np.arange(9) % 2, np.arange(9) % 3, np.arange(9) // 2)
    options: dict[str, Any] = {"name": "x", "intensity_range": (0, 4095), **changes}
    return Splits(task=task, train=train, **options)


def test_large_arrays_are_mapped_and_aligned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = made()
    write_store(splits, tmp_path / "x.npz")
    monkeypatch.setattr("cohortium.data.npz_archive.MAX_MEMORY_BYTES", 100)
    monkeypatch.setattr(scratch, "MAX_MEMORY_BYTES", 100)
    again = read_npz_splits(tmp_path / "x.npz", name="x")
    held = again.train.images
    while held.base is not None and not isinstance(held, np.memmap):
        held = held.base
    assert isinstance(held, np.memmap)
    assert held.offset % 64 == 0
    assert again.train.fingerprint == splits.train.fingerprint
    assert again.spec == splits.spec


def test_equal_data_give_equal_stores(tmp_path: Path) -> None:
    splits = made()
    first, second = (write_store(splits, tmp_path / f"{k}.npz") for k in range(2))
    assert first == second
    assert (tmp_path / "0.npz").read_bytes() == (tmp_path / "1.npz").read_bytes()
    assert write_store(made(), tmp_path / "other.npz") != first


def test_data_that_no_store_holds_are_refused(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (4, 20, 6, 5), dtype=np.uint8)
    splits = Splits(
        name="x", task=Multiclass(("a", "b")), train=Examples(images, np.array([0, 1, 0, 1]))
    )
    with pytest.raises(DataError):
        write_store(splits, tmp_path / "x.npz")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layout", np.array("sideways")),
        ("layout", np.array(["volumes"])),
        ("intensity_range", np.array([1.0, 0.0])),
        ("intensity_range", np.array([0.0, np.nan])),
        ("intensity_range", np.array([0.0, 1e300])),
        ("intensity_range", np.array("0 1")),
    ],
)
def test_invalid_declarations_in_a_file_are_refused(
    tmp_path: Path, name: str, value: np.ndarray
) -> None:
    arrays: dict[str, Any] = {
        "train_images": np.zeros((4, 6, 6), np.int16),
        "train_labels": np.arange(4) % 2,
        "intensity_range": np.array([0, 9]),
        name: value,
    }
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=name):
        read_npz_splits(tmp_path / "x.npz", name="x")


def test_a_store_keeps_groups_and_centres(tmp_path: Path) -> None:
    def part(count: int) -> Examples:
        return Examples(
            RNG.integers(0, 256, (count, 1, 8, 8), dtype=np.uint8),
            np.arange(count) % 2,
            np.arange(count) % 2,
            None,
            RNG.integers(-1, 2, (count, 2)),
        )

    splits = Splits(
        name="groups",
        task=Multiclass(("a", "b")),
        train=part(12),
        test=part(6),
        groups=(GroupColumn("sex", ("f", "m")), GroupColumn("scanner", ("A", "B", "C"))),
        centres=("north", "south"),
    )
    write_store(splits, tmp_path / "store.npz")
    again = read_npz_splits(tmp_path / "store.npz", name="groups", task=splits.task)
    assert (again.groups, again.centres) == (splits.groups, splits.centres)
    assert again.test is not None
    assert splits.test is not None
    assert again.test.groups is not None
    assert splits.test.groups is not None
    assert np.array_equal(again.test.groups, splits.test.groups)


def test_a_window_is_declared_before_a_store_keeps_what_it_leaves(tmp_path: Path) -> None:
    dicom_set(tmp_path)
    with pytest.raises(RequestError, match=r"declare it with --set dataset\.window"):
        cohortium("pack", str(tmp_path / "t.csv"), "-o", str(tmp_path / "store.npz"))
    assert not (tmp_path / "store.npz").exists()
