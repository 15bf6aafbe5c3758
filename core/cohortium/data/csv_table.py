"""Columns of a CSV file, read line by line."""

from __future__ import annotations

import csv
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Literal

from cohortium.data.table_header import find_columns, require_small
from cohortium.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from io import TextIOWrapper
    from pathlib import Path

Delimiter = Literal["auto", ",", ";", "\t"]
"""Character between two cells of a CSV file. "auto" takes the only possible one."""

_NAMES: Final = {",": "a comma", ";": "a semicolon", "\t": "a tab"}


def read_csv(
    path: Path, wanted: Sequence[str], delimiter: Delimiter, keys: Mapping[str, str]
) -> tuple[dict[str, tuple[str, ...]], tuple[int, ...]]:
    """Return the cells of the wanted columns, and the line in which each row begins.

    Raises:
        DataError: As for `table.read_table`.
    """
    columns: list[list[str]] = [[] for _ in wanted]
    numbers: list[int] = []
    with _opened(path) as file:
        split_at = _choose(file, path, wanted) if delimiter == "auto" else delimiter
        rows = _rows(file, path, split_at)
        _, names = next(rows, (1, []))
        places = find_columns([name.strip() for name in names], wanted, path, keys)
        for line, row in rows:
            if len(row) != len(names):
                raise DataError(
                    f"{path}, line {line}: the row has {len(row)} cells, and the header has "
                    f"{len(names)}; correct it, or quote each cell that has {_NAMES[split_at]}."
                )
            numbers.append(line)
            for column, place in zip(columns, places, strict=True):
                column.append(row[place].strip())
    cells = {name: tuple(column) for name, column in zip(wanted, columns, strict=True)}
    return cells, tuple(numbers)


@contextmanager
def _opened(path: Path) -> Iterator[TextIOWrapper]:
    """Yield the text of a file of bounded size."""
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path} is no file; give the table's file.")
        with path.open(encoding="utf-8-sig", newline="") as file:
            require_small(path, os.fstat(file.fileno()).st_size)
            yield file
    except OSError as error:
        raise DataError(f"cannot read the table {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8; save it as CSV in UTF-8, which spreadsheets offer."
        ) from error


def _choose(file: TextIOWrapper, path: Path, wanted: Sequence[str]) -> str:
    """Return the only delimiter that the line of names can have."""
    line = ""
    while not line.strip():
        line = file.readline(csv.field_size_limit())
        if not line:
            break
    file.seek(0)
    possible = {}
    for delimiter in _NAMES:
        try:
            names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter))]
        except (StopIteration, csv.Error):
            continue
        if len(names) > 1:
            possible[delimiter] = names
    if len(possible) > 1:
        complete = {d: names for d, names in possible.items() if {*wanted} <= {*names}}
        possible = complete if len(complete) == 1 else possible
    if len(possible) > 1:
        found = " or at ".join(_NAMES[delimiter] for delimiter in possible)
        raise DataError(
            f'{path} can be split at {found}; declare one, as in delimiter = "," of the data set.'
        )
    return next(iter(possible), ",")


def _rows(file: TextIOWrapper, path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not blank, each with the line in which it begins."""
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    line = 1
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{path}, line {line}: the row cannot be read ({error}); correct its quotes."
            ) from error
        if row is None:
            return
        if any(cell.strip() for cell in row):
            yield line, row
        line = reader.line_num + 1
