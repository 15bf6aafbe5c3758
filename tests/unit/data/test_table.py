"""Tables of files: each row is read in one way, or refused with its line."""

from __future__ import annotations

import contextlib
import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cohortium.data import table_header
from cohortium.data.table import Table, read_table
from cohortium.data.table_files import listed_files
from cohortium.data.table_labels import class_labels, finding_labels
from cohortium.errors import DataError

PLAIN = "path,label,age\na.png,x,7\nb.png,y,8\n"


def put(folder: Path, text: str | bytes, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def cells(path: Path, *columns: str, **options: Any) -> list[tuple[str, ...]]:
    table = read_table(path, columns, **options)
    return [table.columns[name] for name in columns]


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        "\ufeff" + PLAIN,
        PLAIN.replace(",", ", ").replace("\n", " \n"),
        "\n\n" + PLAIN.replace("\n", "\n\n") + ",,\n , ,\n",
        PLAIN.replace("x", '"x"').rstrip("\n"),
        PLAIN.replace("age", '"age; in years"').replace("8", '"8;9"'),
    ],
)
def test_common_forms_of_csv_are_read(tmp_path: Path, text: str) -> None:
    assert cells(put(tmp_path, text), "label", "path") == [("x", "y"), ("a.png", "b.png")]


def test_declared_delimiter_is_used(tmp_path: Path) -> None:
    path = put(tmp_path, "path,label;a\nx,1;b\n")
    with pytest.raises(DataError, match=r"can be split at a comma or at a semicolon; declare one"):
        read_table(path, ["path", "a"])
    assert cells(path, "path,label", "a", delimiter=";") == [("x,1",), ("b",)]
    assert cells(path, "path", "label;a", delimiter=",") == [("x",), ("1;b",)]


def test_place_counts_lines_of_the_file(tmp_path: Path) -> None:
    table = read_table(put(tmp_path, 'path,note\n\na.png,"two\nlines"\nb.png,\n'), ["path"])
    assert [table.where(row).rpartition(", ")[2] for row in range(2)] == ["line 3", "line 5"]
    assert len(table) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no column path; it has none"),
        ("path,label\n", "has no rows"),
        (PLAIN.replace("label", "lable"), "has no column label; did you mean lable"),
        (PLAIN.replace("label", "Label"), "has no column label; did you mean Label"),
        (PLAIN.replace("label", "dx"), "has no column label; there are age, dx, path"),
        (PLAIN.replace("age", "label"), "has two columns label"),
        (PLAIN + "c.png,x\n", "line 4: the row has 2 cells, and the header has 3"),
        (PLAIN + "c.png,x,1,2\n", "quote each cell that has a comma"),
        (PLAIN + '"c.png,x,1\n', "line 4: the row cannot be read"),
        (PLAIN + "c.png,x," + "9" * 200_000, "line 4: the row cannot be read"),
        (PLAIN.encode("utf-16"), "is not UTF-8"),
        (PLAIN.replace("x", "Grad ß").encode("latin-1"), "is not UTF-8"),
    ],
)
def test_faulty_csv_is_refused_with_its_line(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read_table(put(tmp_path, text), ["path", "label"])
    assert "t.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_table_without_header_is_refused_unseen(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"begins with a row of an image; .* path,label") as caught:
        read_table(put(tmp_path, "a.png,x,Mustermann\n"), ["path", "label"])
    assert "Mustermann" not in str(caught.value)


def test_missing_large_and_foreign_tables_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"cannot read the table .*No such file"):
        read_table(tmp_path / "t.csv", ["path"])
    with pytest.raises(DataError, match=r"is no table .*\.csv, \.parquet, \.tsv or \.txt"):
        read_table(put(tmp_path, PLAIN, "t.xlsx"), ["path"])
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(DataError, match=r"d\.csv is no file"):
        read_table(tmp_path / "d.csv", ["path"])
    monkeypatch.setattr(table_header, "MAX_TABLE_BYTES", 10)
    with pytest.raises(DataError, match="and a table may take"):
        read_table(put(tmp_path, PLAIN), ["path"])


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), min_size=1)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(NAMES, NAMES), min_size=1), mark=st.booleans())
def test_written_cells_are_read_back(
    tmp_path: Path, rows: list[tuple[str, str]], mark: bool
) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([("path", "label"), *rows])
    path = put(tmp_path, ("\ufeff" * mark + text.getvalue()).encode())
    kept = [(a.strip(), b.strip()) for a, b in rows if a.strip() or b.strip()]
    if kept:
        assert list(zip(*cells(path, "path", "label"), strict=True)) == kept
    else:
        with pytest.raises(DataError, match="has no rows"):
            cells(path, "path", "label")


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_csv_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(b'path,label\n"a.png",x\nb.png;,"y\n"\n')
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        whole[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DataError):
        assert len(read_table(put(tmp_path, bytes(whole)), ["path", "label"]))


# --- Parquet --------------------------------------------------------------------------------------


def parquet(folder: Path, **columns: Any) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    files.write_table(pyarrow.table(columns), folder / "t.parquet")
    return folder / "t.parquet"


def test_parquet_columns_become_the_same_text(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    path = parquet(
        tmp_path,
        path=[" a.png", "b.png", "c.png"],
        number=[1, None, -3],
        share=[1.0, None, float("nan")],
        truth=[True, False, None],
        kind=pyarrow.array(["x", "y", "x"]).dictionary_encode(),
        other=[[1], [2], [3]],
    )
    assert cells(path, "path", "number", "share", "truth", "kind") == [
        ("a.png", "b.png", "c.png"), ("1", "", "-3"), ("1.0", "", ""), ("1", "0", ""),
        ("x", "y", "x"),
    ]  # fmt: skip
    assert read_table(path, ["path"]).where(2).endswith("t.parquet, row 3")
    with pytest.raises(
        DataError, match=r"column other is of type list.*save it as text or numbers"
    ):
        read_table(path, ["path", "other"])
    with pytest.raises(DataError, match="has no column paths; did you mean path"):
        read_table(path, ["paths"])


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_parquet_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(parquet(tmp_path, path=["a.png"], label=["x"]).read_bytes())
    cut = data.draw(st.integers(0, len(whole)))
    with pytest.raises(DataError, match="cannot be read as a Parquet file"):
        read_table(put(tmp_path, bytes(whole[:cut]) + b"?", "t.parquet"), ["path"])


def test_large_parquet_is_refused_before_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = parquet(tmp_path, path=["a.png"] * 5000, note=["x" * 9] * 5000)
    monkeypatch.setattr(table_header, "MAX_TABLE_BYTES", 4000)
    with pytest.raises(DataError, match="and a table may take"):
        read_table(path, ["path"])


def test_missing_pyarrow_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs pyarrow; pip install 'cohortium\[parquet\]'"):
        read_table(put(tmp_path, "", "t.parquet"), ["path"])


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
