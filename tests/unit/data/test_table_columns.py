"""Columns of files and labels: each row is read in one way, or refused with its line."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cohortium.data.table import Table
from cohortium.data.table_files import listed_files
from cohortium.data.table_groups import read_group
from cohortium.data.table_labels import class_labels, finding_labels
from cohortium.errors import DataError

# --- Files ----------------------------------------------------------------------------------------


def made(folder: Path, **columns: Sequence[str]) -> Table:
    held = {name: tuple(texts) for name, texts in columns.items()}
    rows = len(next(iter(held.values())))
    return Table(
        path=folder / "t.csv", columns=held, numbers=tuple(range(2, rows + 2)), unit="line"
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("in/a.png", "in/deep/b.PNG", "out.png", "in/c.txt"):
        (tmp_path / name).touch()
    (tmp_path / "in" / "link.png").symlink_to("a.png")
    (tmp_path / "in" / "escape.png").symlink_to("../out.png")
    (tmp_path / "in" / "away").symlink_to("..")
    return tmp_path / "in"


def test_files_are_found_in_their_folder(tmp_path: Path, root: Path) -> None:
    table = made(tmp_path, path=["./a.png", "deep/b.PNG"])
    assert listed_files(table, "path", root) == (root / "a.png", root / "deep/b.PNG")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "path is empty; name an image, or leave the row out"),
        ("../out.png", "leaves the folder"),
        ("deep/../../out.png", "leaves the folder"),
        (r"..\out.png", "leaves the folder"),
        ("/etc/passwd.png", "leaves the folder"),
        (r"C:\images\a.png", "leaves the folder"),
        (r"\\server\share\a.png", "leaves the folder"),
        ("a.png\0.png", "leaves the folder"),
        ("escape.png", "leaves the folder .* by a symbolic link"),
        ("away/out.png", "leaves the folder .* by a symbolic link"),
        ("away/in/a.png", "is listed in line 2 too"),
        ("a.png", "is listed in line 2 too; leave one row out, or declare repeats = true"),
        ("link.png", "is listed in line 2 too"),
        ("c.txt", r"c\.txt is of no kind that can be read"),
        ("d.png", r"there is no file .*d\.png; correct the path, or"),
        (r"deep\b.png", "with / between folders"),
        ("deep", "is of no kind"),
        ("x" * 300 + ".png", "there is no file"),
        ("a.png/a.png", "there is no file"),
        ("d\x1b[2J.png", r"there is no file .*d\\x1b\[2J\.png"),
    ],
)
def test_path_that_cannot_be_used_is_refused_with_its_line(
    tmp_path: Path, root: Path, text: str, words: str
) -> None:
    table = made(tmp_path, path=["a.png", text])
    with pytest.raises(DataError, match=rf"t\.csv, line 3: .*{words}"):
        listed_files(table, "path", root)


def test_repeats_are_allowed_if_declared(tmp_path: Path, root: Path) -> None:
    table = made(tmp_path, path=["a.png", "link.png"])
    assert listed_files(table, "path", root, allow_repeats=True) == (root / "a.png",) * 2


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.sampled_from(["..", ".", "deep", "away", "", "a.png", "out.png", "in"])))
def test_listed_file_is_always_inside(tmp_path: Path, root: Path, parts: list[str]) -> None:
    with contextlib.suppress(DataError):
        (path,) = listed_files(made(tmp_path, path=["/".join(parts)]), "path", root)
        assert path.resolve().is_relative_to(root.resolve())


# --- Labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "declared", "numbers", "names"),
    [
        (["b", "a", "b"], (), [1, 0, 1], ("a", "b")),
        (["b", "a", "b"], ("b", "c", "a"), [0, 2, 0], ("b", "c", "a")),
        (["1", "0", "2.0"], (), [1, 0, 2], ("0", "1", "2")),
        (["1", "0", "2"], ("x", "y", "z"), [1, 0, 2], ("x", "y", "z")),
        (["1", "2"], ("2", "1"), [1, 0], ("2", "1")),
        (["3", "3"], ("a", "b", "c", "d"), [3, 3], ("a", "b", "c", "d")),
        (["b", "b"], ("a", "b"), [1, 1], ("a", "b")),
    ],
)
def test_class_is_read_by_name_or_number(
    tmp_path: Path, texts: list[str], declared: tuple[str, ...], numbers: list[int],
    names: tuple[str, ...],
) -> None:  # fmt: skip
    labels, found = class_labels(made(tmp_path, dx=texts), "dx", declared)
    assert (labels.tolist(), found) == (numbers, names)
    assert labels.dtype == np.int64


@pytest.mark.parametrize(
    ("texts", "declared", "words"),
    [
        (["a", ""], (), "line 3: dx is empty; leave out images without a class"),
        (["1", "2"], (), "column dx: its labels are 1, 2; they begin at 1"),
        (["0", "1", "255"], (), "255 lies apart"),
        (["0", "-1"], (), "number the classes from 0"),
        (["0", "0"], (), "of one class alone"),
        (["0.5", "0.1"], (), "line 2: dx is a measurement"),
        (["a", "a"], (), "same text in every row"),
        (["Benign", "benign "], (), "line 3: dx differs from line 2 in case or spaces alone"),
        ([f"P-{n}" for n in range(30)], (), "30 different texts in 30 rows, as identifiers do"),
        (["benign", "malignat"], ("benign", "malignant"), "line 3: .*did you mean malignant"),
        (
            ["benin", "malignant", "xyz", "malignat", "malignat"],
            ("benign", "malignant"),
            r"4 rows, with 3 .* line 2 \(.* benign\?\), line 4, line 5 .* malignant\?\); correct",
        ),
        (
            [f"Muster-{n}" for n in range(30)],
            ("x", "y"),
            "30 different labels, .* line 11, …; correct",
        ),
        (["0", "2"], ("x", "y"), "line 3: the label 2 is beyond the 2 declared classes"),
        (["0", "-1"], ("x", "y"), "line 3: the label -1 is beyond"),
        (["0", "x"], ("x", "y"), "line 2: dx is none of the declared classes"),
    ],
)
def test_label_that_is_no_class_is_refused(
    tmp_path: Path, texts: list[str], declared: tuple[str, ...], words: str
) -> None:
    table = made(tmp_path, dx=[text.strip() for text in texts])
    with pytest.raises(DataError, match=words) as caught:
        class_labels(table, "dx", declared)
    assert "P-" not in str(caught.value)


def test_findings_are_three_valued(tmp_path: Path) -> None:
    table = made(tmp_path, mass=["1", "0.0", "-1"], fluid=["", "1.0", "-1.0"])
    found = finding_labels(table, ["mass", "fluid"])
    assert found.dtype == np.int8
    assert found.tolist() == [[1, -1], [0, 1], [-1, -1]]
    with pytest.raises(DataError, match="line 2: mass is not 0, 1, -1 or empty"):
        finding_labels(made(tmp_path, mass=["2"]), ["mass"])
    with pytest.raises(DataError, match="line 3: mass is not 0, 1, -1 or empty") as caught:
        finding_labels(made(tmp_path, mass=["0", "Mustermann"]), ["mass"])
    assert "Mustermann" not in str(caught.value)


def test_categories_are_sorted_as_numbers_or_texts(tmp_path: Path) -> None:
    table = made(tmp_path, a=["10", "9", "10"], b=["10", "9", "x"])
    codes, names = table.categories("a", "fill it in")
    assert (codes.tolist(), names) == ([1, 0, 1], ("9", "10"))
    assert table.categories("b", "fill it in")[1] == ("10", "9", "x")
    with pytest.raises(DataError, match="line 3: c is empty; fill it in"):
        made(tmp_path, c=["x", ""]).categories("c", "fill it in")
    assert "'9'" not in repr(table)


# --- Groups ---------------------------------------------------------------------------------------


def test_missing_group_is_not_stated(tmp_path: Path) -> None:
    missing = ("", "NaN", "nan", "NaT", "<NA>", "#N/A", "NA", "n/a", "None", "NULL")
    table = made(tmp_path, sex=("f", *missing, "m"))
    column, codes = read_group(table, "sex")
    assert column.values == ("f", "m")
    assert codes.tolist() == [0, *[-1] * len(missing), 1]
