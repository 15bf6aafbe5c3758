from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cohortium import Federation
from cohortium.errors import DataError, StudyError
from cohortium.plugin import Dataset, Examples
from cohortium_folder import Folder, cohortium_datasets
from cohortium_npz import Npz
from tests.support.image_files import write_files


def image(number: int, *shape: int) -> np.ndarray:
    return np.full(shape or (6, 4), number, np.uint8)


def put(root: Path, **files: np.ndarray) -> Path:
    """Write files whose names have two underscores for each slash."""
    for name, pixels in files.items():
        path = root / f"{name.replace('__', '/')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    return put(tmp_path / "lesions", b__2=image(1), b__1=image(2), a__9=image(3), a__10=image(4))


def seen(part: Examples | None) -> list[tuple[int, int]]:
    assert part is not None
    return [(int(x.max()), int(y)) for x, y in zip(part.images, part.labels, strict=True)]


def test_class_folders_are_read_in_order(flat: Path) -> None:
    splits = Folder(path=str(flat)).load()
    assert (splits.name, splits.classes) == ("lesions", ("a", "b"))
    assert seen(splits.train) == [(4, 0), (3, 0), (2, 1), (1, 1)]
    assert splits.train.images.shape == (4, 1, 6, 4)
    assert (splits.validation, splits.test, splits.train.patients) == (None, None, None)
    named = Folder(path=str(flat), classes=("b", "c", "a"), title="Skin").load()
    assert (named.name, named.classes) == ("Skin", ("b", "c", "a"))
    assert seen(named.train) == [(2, 0), (1, 0), (4, 2), (3, 2)]


def test_split_folders_are_read(tmp_path: Path) -> None:
    root = put(
        tmp_path,
        Train__a__1=image(1), Train__b__1=image(2), val__b__1=image(3), TEST__a__1=image(4),
    )  # fmt: skip
    splits = Folder(path=str(root)).load()
    assert [seen(p) for p in (splits.train, splits.validation, splits.test)] == [
        [(1, 0), (2, 1)], [(3, 1)], [(4, 0)]
    ]  # fmt: skip


def test_files_of_operating_systems_are_ignored(flat: Path) -> None:
    for name in (".DS_Store", "a/._9.png", "a/Thumbs.db", "b/desktop.ini"):
        (flat / name).write_bytes(b"?")
    (flat / "__MACOSX" / "a").mkdir(parents=True)
    (flat / ".git").mkdir()
    assert len(Folder(path=str(flat)).load().train) == 4


def _empty_class(root: Path) -> None:
    (root / "c").mkdir()


def _stray_text(root: Path) -> None:
    (root / "a" / "notes.txt").touch()


def _stray_image(root: Path) -> None:
    put(root, x=image(1))


def _nested(root: Path) -> None:
    put(root, a__more__1=image(1))


def _beside_a_split(root: Path) -> None:
    put(root, train__a__1=image(1))


def _without_train(root: Path) -> None:
    for name in ("a", "b"):
        (root / name).rename(root / f"{name}.tmp")
    put(root, val__a__1=image(1))
    for name in ("a", "b"):
        shutil.rmtree(root / f"{name}.tmp")


def _twice_one_split(root: Path) -> None:
    put(root, val__a__1=image(1), validation__a__1=image(1))


def _one_class(root: Path) -> None:
    shutil.rmtree(root / "a")


def _no_class(root: Path) -> None:
    for name in ("a", "b"):
        shutil.rmtree(root / name)


def _damaged(root: Path) -> None:
    (root / "b" / "1.png").write_bytes(b"?")


def _other_size(root: Path) -> None:
    put(root, b__1=image(1, 6, 5))


def _unknown_class(root: Path) -> None:
    (root / "a").rename(root / "bb")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_empty_class, r"class folder .*c has no images; add some, or remove it"),
        (_stray_text, r"a/notes\.txt is of no kind that can be read; put it elsewhere"),
        (_stray_image, r"x\.png is in no class folder"),
        (_nested, r"a/more is a folder in a class folder"),
        (_beside_a_split, r"lesions/a is next to the folder train of a split"),
        (_without_train, r"has a folder val, but no folder train"),
        (_twice_one_split, r"validation and .*val are one split"),
        (_one_class, r"has one class folder, and of one class alone"),
        (_no_class, r"has no folders; make one for each class"),
        (_damaged, r"b/1\.png is no PNG, JPEG or TIFF file"),
        (_other_size, r"b/1\.png has 1 channel of 6 × 5 .* and .*a/10\.png has .* declare size ="),
    ],
)
def test_unexpected_content_is_refused(flat: Path, spoil: Any, words: str) -> None:
    spoil(flat)
    with pytest.raises(DataError, match=words) as caught:
        Folder(path=str(flat)).load()
    assert "\n" not in str(caught.value)


def test_undeclared_class_folder_is_refused(flat: Path) -> None:
    _unknown_class(flat)
    with pytest.raises(DataError, match=r"bb is no folder of a declared class; did you mean b"):
        Folder(path=str(flat), classes=("a", "b")).load()


def test_missing_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COHORTIUM_DATA", raising=False)
    with pytest.raises(DataError, match=r"there is no folder .*gone, and COHORTIUM_DATA names no"):
        Folder(path=str(tmp_path / "gone")).load()
    monkeypatch.setenv("COHORTIUM_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"it is not in .* put the folder there"):
        Folder(path="gone").load()


def test_declared_size_is_applied(flat: Path) -> None:
    put(flat, b__3=image(5, 12, 8))
    splits = Folder(path=str(flat), size=(3, 2), resize="nearest").load()
    assert splits.train.images.shape == (5, 1, 3, 2)
    assert seen(splits.train)[-1] == (5, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": ""}, "folder: path is ''"),
        ({"path": "a", "classes": "ab"}, "folder: classes is 'ab'"),
        ({"path": "a", "classes": ("b", "b")}, "a tuple of different texts"),
        ({"path": "a", "size": (1, 2, 3)}, "give height and width"),
    ],
)
def test_invalid_parameters_are_refused_by_name(options: dict[str, Any], words: str) -> None:
    with pytest.raises(StudyError, match=words):
        Folder(**options)


def test_plugin_is_offered_as_dataset() -> None:
    (offer,) = cohortium_datasets()
    assert (offer.name, offer.local_parameters) == ("folder", ("path",))
    assert isinstance(offer.factory(path="a"), Dataset)


def test_study_reads_folder_parameters(flat: Path) -> None:
    study = Federation(
        dataset=Folder(path=str(flat), size=(8, 8)), model="cnn", trainer="fedavg",
        privatizer="none", aggregator="plain", sites=2, rounds=1,
    )  # fmt: skip
    path = flat.parent / "study.toml"
    path.write_text(study.as_toml(), "utf-8")
    assert Federation.read(path) == study


@pytest.mark.data
@pytest.mark.slow
def test_real_images_have_the_same_content(tmp_path: Path) -> None:
    if not os.environ.get("COHORTIUM_DATA"):
        pytest.skip("COHORTIUM_DATA names no folder of real images")
    given = Npz(path="pneumoniamnist.npz", classes=("normal", "pneumonia")).load()
    write_files(given, tmp_path / "files")
    found = Folder(path=str(tmp_path / "files")).load()
    assert found.classes == given.classes
    for name in ("train", "validation", "test"):
        one, other = getattr(given, name), getattr(found, name)
        # Files are sorted by class, and within it they are in the order in which they were written.
        order = np.argsort(one.labels, kind="stable")
        np.testing.assert_array_equal(other.labels, one.labels[order])
        np.testing.assert_array_equal(other.images, one.images[order])
