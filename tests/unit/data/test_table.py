"""Tables of files: each row is read in one way, or refused with its line."""

from __future__ import annotations

import contextlib
import csv
import io
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cohortium.data import table_header
from cohortium.data.table import read_table
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
        (PLAIN.replace("label", "labels"), "has no column label; did you mean labels"),
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


def test_other_files_name_their_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'is no table; .* set name = "npz"'):
        read_table(put(tmp_path, PLAIN, "t.npz"), ["path"])
