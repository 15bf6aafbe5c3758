"""A file format of one's own, whose files a table lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from attrs import frozen

from cohortium.plugin import (
    DataError,
    FileTable,
    ListedExample,
    ListedFormat,
    Splits,
    StudyError,
)
from cohortium_segmentation import Segmentation


@frozen(kw_only=True)
class Numbers(FileTable):
    """Text files of one line of numbers for each row of pixels."""

    is_named: bool = False

    def load(self) -> Splits:
        return self.read_splits(
            ListedFormat(read=self._read, suffixes=(".txt",), mask_suffixes=(".lab",))
        )

    def _read(self, path: Path, mask_path: Path | None) -> ListedExample:
        image = np.loadtxt(path, np.uint8, ndmin=2)
        return ListedExample(
            image=image[None],
            mask=None if mask_path is None else np.loadtxt(mask_path, np.uint8, ndmin=2),
            patient=f"P-{image.sum()}" if self.is_named else None,
        )


@pytest.fixture
def path(tmp_path: Path) -> str:
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text(f"{number} 1\n2 3\n1 0")
        (tmp_path / f"{number}.lab").write_text(f"0 {number % 2}\n1 1\n0 0")
    rows = [f"{number}.txt,{number}.lab,{'ab'[number % 2]}" for number in range(4)]
    (tmp_path / "t.csv").write_text("\n".join(["path,outline,label", *rows]))
    return str(tmp_path / "t.csv")


def test_format_gives_images_and_labels(path: str) -> None:
    train = Numbers(path=path).load().train
    assert train.images[:, 0, 0].tolist() == [[0, 1], [1, 1], [2, 1], [3, 1]]
    assert train.labels.tolist() == [0, 1, 0, 1]
    assert train.patients is None


def test_format_names_patients(path: str) -> None:
    patients = Numbers(path=path, is_named=True).load().train.patients
    assert patients is not None
    assert patients.tolist() == [0, 1, 2, 3]


def test_masks_are_resized_with_their_images(path: str) -> None:
    dataset = Numbers(path=path, mask="outline", task=Segmentation())
    assert dataset.load().train.labels[1].tolist() == [[0, 1], [1, 1], [0, 0]]
    resized = Numbers(path=path, mask="outline", task=Segmentation(), size=(6, 4)).load().train
    assert resized.images.shape == (4, 1, 6, 4)
    assert resized.labels[1].tolist() == np.kron([[0, 1], [1, 1], [0, 0]], np.ones((2, 2))).tolist()


def test_other_endings_are_refused(path: str) -> None:
    with pytest.raises(DataError, match=r"line 2: 0\.lab is of no kind .* the kinds are \.txt\."):
        Numbers(path=path, image="outline").load()
    with pytest.raises(DataError, match=r"line 2: 0\.txt is of no kind .* the kinds are \.lab\."):
        Numbers(path=path, mask="path", task=Segmentation()).load()


def grouped(folder: Path, cells: list[str]) -> Path:
    """A table of eight images with a column of groups, the cells of which repeat."""
    for number in range(8):
        (folder / f"{number}.txt").write_text(f"{number} 1")
    rows = [
        f"{number}.txt,{'ab'[number % 2]},{('train', 'test')[number // 4]},{'NS'[number % 2]},"
        f"{cells[number % len(cells)]}"
        for number in reversed(range(8))
    ]
    (folder / "g.csv").write_text("\n".join(["path,label,split,site,sex", *rows]))
    return folder / "g.csv"


def test_groups_follow_their_rows_into_splits(tmp_path: Path) -> None:
    path = grouped(tmp_path, ["m", "f", ""])
    splits = Numbers(path=str(path), split="split", site="site", groups=("sex", "site")).load()
    assert [column.name for column in splits.groups] == ["sex", "site"]
    assert splits.groups[0].values == ("f", "m")
    assert splits.centres == ("N", "S")
    for part in (splits.train, splits.test):
        assert part is not None
        assert part.groups is not None
        numbers = part.images[:, 0, 0, 0]
        assert part.groups[:, 0].tolist() == [(1, 0, -1)[number % 3] for number in numbers]
        assert part.groups[:, 1].tolist() == (numbers % 2).tolist()


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        (["F", "f"], "line 3: .*sex.* differs from line 2 in case or spaces alone"),
        (["x" * 81], "line 2: .*sex.* more than 80 characters"),
        (["a\x1bb"], "line 2: .*sex.* cannot be shown"),
    ],
)
def test_unclear_groups_are_refused(tmp_path: Path, cells: list[str], sentence: str) -> None:
    path = grouped(tmp_path, cells)
    with pytest.raises(DataError, match=sentence):
        Numbers(path=str(path), groups=("sex",)).load()


def test_too_many_groups_are_refused_without_cells(tmp_path: Path) -> None:
    rows = []
    for number in range(70):
        (tmp_path / f"{number}.txt").write_text(f"{number} 1")
        rows.append(f"{number}.txt,{'ab'[number % 2]},P-{number}")
    (tmp_path / "t.csv").write_text("\n".join(["path,label,age", *rows]))
    with pytest.raises(DataError, match=r"has 70 different values, .* write ranges") as error:
        Numbers(path=str(tmp_path / "t.csv"), groups=("age",)).load()
    assert "P-" not in str(error.value)


def test_patients_are_no_groups(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="not that of the patients"):
        Numbers(path=str(tmp_path / "t.csv"), patient="sex", groups=("sex",))
    with pytest.raises(StudyError, match="declare at most 8"):
        Numbers(path=str(tmp_path / "t.csv"), groups=tuple("abcdefghi"))
