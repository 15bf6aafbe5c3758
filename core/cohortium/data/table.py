"""Tables of files that a hospital writes: CSV or Parquet, one row for each image.

    from cohortium.plugin import read_table

    table = read_table(Path("chest.csv"), ["path", "finding"])

Only the columns that are asked for are kept. A cell is text without spaces around it, for both
kinds of file. Errors name the place of a row, and no cell's content.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from attrs import field, frozen

from cohortium.data.csv_table import Delimiter, read_csv
from cohortium.data.location import other_reader
from cohortium.data.parquet_table import read_parquet
from cohortium.errors import DataError
from cohortium.text import quote_key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

TABLE_SUFFIXES: Final = (".csv", ".parquet", ".tsv", ".txt")
"""Suffixes of tables, in lower case. All but Parquet are CSV."""


MISSING: Final = frozenset({"#n/a", "<na>", "nan", "nat"})
"""Cells that programs write for a missing value, in lower case."""

MISSING_NAMES: Final = MISSING | {"n/a", "na", "none", "null"}
"""Cells that stand for a missing value where a name is expected, in lower case."""


@frozen(eq=False, kw_only=True)
class Table:
    """Columns of a table, as text.

    Attributes:
        path: Its file.
        columns: The cells of each column that was asked for, N of them.
        numbers: The line of the file, or the row of a Parquet file, in which each row begins.
        unit: Name of such a number: "line" or "row".
    """

    path: Path
    columns: Mapping[str, tuple[str, ...]] = field(repr=False)
    numbers: tuple[int, ...] = field(repr=False)
    unit: str

    def __len__(self) -> int:
        """Return the number of rows, N."""
        return len(self.numbers)

    def where(self, row: int) -> str:
        """Return the place of `row`, from 0, for an error."""
        return f"{self.path}, {self.unit} {self.numbers[row]}"

    def complete(
        self, column: str, advice: str, missing: frozenset[str] = MISSING
    ) -> tuple[str, ...]:
        """Return the cells of a column that has to be complete.

        Args:
            column: Its name.
            advice: The remedy for an empty cell, as the end of an error's sentence.
            missing: Cells that stand for a missing value, in lower case.

        Raises:
            DataError: A cell is empty, or stands for a missing value.
        """
        cells = self.columns[column]
        for row, cell in enumerate(cells):
            if not cell:
                raise DataError(f"{self.where(row)}: {quote_key(column)} is empty; {advice}.")
            if cell.lower() in missing:
                raise DataError(
                    f"{self.where(row)}: {quote_key(column)} is {cell!r}, which stands for a "
                    f"missing value; {advice}."
                )
        return cells

    def categories(self, column: str, advice: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Return a complete column as numbers of its different cells, with these.

        The cells are in the order of their text, or of their values if all are whole numbers.

        Args:
            column: Its name.
            advice: The remedy for an empty cell, as the end of an error's sentence.

        Returns:
            Numbers from 0, shape (N,), and the K different cells.

        Raises:
            DataError: A cell is empty, or stands for a missing name.
        """
        cells = self.complete(column, advice, MISSING_NAMES)
        distinct = set(cells)
        order: Any = int if all(c.isascii() and c.isdecimal() for c in distinct) else str
        names = tuple(sorted(distinct, key=lambda cell: (order(cell), cell)))
        number = {name: index for index, name in enumerate(names)}
        return np.array([number[cell] for cell in cells], dtype=np.int64), names


def read_table(
    path: Path,
    columns: Sequence[str],
    *,
    delimiter: Delimiter = "auto",
    keys: Mapping[str, str] = MappingProxyType({}),
) -> Table:
    """Read columns of a table.

    A CSV file is UTF-8, with or without a byte order mark, and its first line names the columns.
    Blank lines are skipped. A Parquet file needs `pip install 'cohortium[parquet]'`.

    Args:
        path: The file. Its suffix is one of `TABLE_SUFFIXES`.
        columns: Names of the columns to read.
        delimiter: The character between cells of a CSV file. "auto" takes the comma, the semicolon
            or the tab, if only one of them is possible.
        keys: The key of a data set that names each column, which the error about a missing column
            then names.

    Raises:
        DataError: The file is missing, damaged, too large or empty. Or a column is missing or
            occurs twice, or a row has another length. The sentence names the line.
    """
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        if advice := other_reader(path):
            raise DataError(f"{path} is no table; {advice}.")
        raise DataError(
            f"{path} is no table that can be read; give a file that ends in "
            f"{', '.join(TABLE_SUFFIXES[:-1])} or {TABLE_SUFFIXES[-1]}."
        )
    wanted = tuple(dict.fromkeys(columns))
    is_parquet = suffix == ".parquet"
    if is_parquet:
        read, numbers = read_parquet(path, wanted, keys)
    else:
        read, numbers = read_csv(path, wanted, delimiter, keys)
    if not numbers:
        raise DataError(f"{path} has no rows; write one for each image.")
    return Table(path=path, columns=read, numbers=numbers, unit="row" if is_parquet else "line")
