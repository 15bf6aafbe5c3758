"""A file format of one's own, whose files a table lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from attrs import frozen

from cohortium.plugin import DataError, FileTable, ListedExample, ListedFormat, Splits
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
