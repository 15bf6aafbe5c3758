"""A look that notes every file that cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cohortium.data.image_file import ImageFileOptions
from cohortium.data.readable_files import stack_readable_files
from cohortium.data.survey import MAX_NOTES, MAX_REFUSED, OTHERS, DataSurvey, load_readable
from cohortium.errors import DataError
from cohortium.plugin import read_readable_images
from cohortium_dicom import DicomDataset, Window
from cohortium_folder import Folder
from cohortium_segmentation import Segmentation
from cohortium_table import TableDataset
from tests.support.dicom_files import saved


def save(path: Path, *shape: int, value: int = 7) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(shape or (5, 4), value, np.uint8)).save(path)
    return path


def test_every_unreadable_file_is_named(tmp_path: Path) -> None:
    files = [save(tmp_path / f"{k}.png", value=k) for k in range(9)]
    for k in (0, 3, 8):
        files[k].write_bytes(b"?")
    save(files[5], 6, 4)
    survey = DataSurvey()
    kept, images = read_readable_images(files, ImageFileOptions(), survey)
    assert kept.tolist() == [1, 2, 4, 6, 7]
    assert images[:, 0, 0, 0].tolist() == [1, 2, 4, 6, 7]
    assert survey.num_refused == 4
    for reason, k in zip(survey.refused, (0, 3, 5, 8), strict=True):
        assert str(files[k]) in reason
    assert "bring the files to one size" in survey.refused[2]


@given(st.lists(st.sampled_from(["a", "b", "?"]), min_size=1, max_size=40))
def test_most_frequent_form_is_kept(kinds: list[str]) -> None:
    shapes = {"a": (1, 2, 2), "b": (1, 3, 2)}

    def read(index: int) -> tuple[np.ndarray, ...]:
        if kinds[index] == "?":
            raise DataError("broken.")
        return (np.full(shapes[kinds[index]], index, np.uint8),)

    survey, files = DataSurvey(), [Path(str(k)) for k in range(len(kinds))]
    if set(kinds) == {"?"}:
        with pytest.raises(DataError, match="none of"):
            stack_readable_files([files], read, survey, num_threads=2)
        assert survey.num_refused == len(kinds)
        return
    kept, (images,) = stack_readable_files([files], read, survey, num_threads=2)
    most = max(kinds.count("a"), kinds.count("b"))
    assert len(kept) == most == len(images)
    assert survey.num_refused == len(kinds) - most
    assert images[:, 0, 0, 0].tolist() == kept.tolist() == sorted(kept.tolist())


def test_survey_bounds_its_lists() -> None:
    survey = DataSurvey()
    for k in range(MAX_REFUSED + 50):
        survey.refuse(f"{k}.")
        survey.note("window", str(k))
    assert len(survey.refused) == MAX_REFUSED
    assert survey.num_refused == MAX_REFUSED + 50
    assert len(survey.notes["window"]) == MAX_NOTES + 1
    assert dict(survey.notes["window"])[OTHERS] == MAX_REFUSED + 50 - MAX_NOTES


def test_folder_without_faults_is_read_as_in_a_run(tmp_path: Path) -> None:
    for k in range(6):
        save(tmp_path / ("train", "val")[k % 2] / "ab"[k // 3] / f"{k}.png", value=k)
    dataset, survey = Folder(path=str(tmp_path)), DataSurvey()
    found, expected = load_readable(dataset, survey), dataset.load()
    assert survey.num_refused == 0
    assert found.train.fingerprint == expected.train.fingerprint
    assert found.validation is not None
    assert expected.validation is not None
    assert found.validation.fingerprint == expected.validation.fingerprint


def test_folder_notes_files_of_every_fault(tmp_path: Path) -> None:
    for k in range(4):
        save(tmp_path / "ab"[k % 2] / f"{k}.png")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "a" / "x.pdf").write_text("x")
    (tmp_path / "b" / "inner").mkdir()
    (tmp_path / "b" / "broken.png").write_bytes(b"?")
    survey = DataSurvey()
    assert len(load_readable(Folder(path=str(tmp_path)), survey).train) == 4
    assert survey.num_refused == 4
    for name in ("notes.txt", "x.pdf", "inner", "broken.png"):
        assert any(name in reason for reason in survey.refused)


def test_table_leaves_out_refused_rows(tmp_path: Path) -> None:
    for k in range(6):
        save(tmp_path / f"{k}.png", value=k)
        save(tmp_path / f"m{k}.png", value=k % 2)
    (tmp_path / "2.png").write_bytes(b"?")
    save(tmp_path / "m4.png", 9, 9)
    rows = [f"{k}.png,m{k}.png,P{k // 2},{'test' if k == 2 else 'train'}" for k in range(6)]
    rows += ["../secret.png,m0.png,P9,train", "gone.png,m0.png,P9,train", "5.png,x.exe,P9,train"]
    (tmp_path / "t.csv").write_text("\n".join(["path,mask,patient,split", *rows]))
    survey = DataSurvey()
    dataset = TableDataset(
        path=str(tmp_path / "t.csv"),
        mask="mask",
        patient="patient",
        split="split",
        task=Segmentation(),
    )
    splits = load_readable(dataset, survey)
    assert splits.train.images[:, 0, 0, 0].tolist() == [0, 1, 3, 5]
    assert splits.train.labels[:, 0, 0].tolist() == [0, 1, 1, 1]
    assert splits.test is None
    assert splits.train.patients is not None
    assert len(np.unique(splits.train.patients)) == 3
    assert survey.num_refused == 6
    assert not any("P9" in reason for reason in survey.refused)


def test_dicom_windows_are_counted(tmp_path: Path) -> None:
    for k in range(3):
        saved(
            tmp_path / f"{k}.dcm",
            np.full((4, 4), k, np.uint16),
            WindowCenter=40 + k // 2,
            WindowWidth=400,
        )
    (tmp_path / "t.csv").write_text("path,label\n0.dcm,a\n1.dcm,b\n2.dcm,b\n")
    survey = DataSurvey()
    window = Window(center=1, width=4)
    load_readable(DicomDataset(path=str(tmp_path / "t.csv"), window=window), survey)
    assert survey.notes["window of the file"] == (
        ("center 40, width 400", 2),
        ("center 41, width 400", 1),
    )
    assert survey.notes["stored bits"] == (("16", 3),)
