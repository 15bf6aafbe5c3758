"""The rows of a table by split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from cohortium.errors import DataError
from cohortium.text import did_you_mean, quote_key

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from cohortium.data.table import Table

SPLITS: Final[Mapping[str, str]] = {
    "train": "train",
    "val": "validation",
    "validation": "validation",
    "test": "test",
}
"""Splits by their names in a table, in lower case."""


def rows_by_split(table: Table, column: str) -> dict[str, NDArray[np.int64]]:
    """Return the rows of each split that has any, in the table's order.

    Args:
        table: The table.
        column: Name of the column of splits, or "" if all rows are for training.

    Raises:
        DataError: A cell names no split, or no row is for training.
    """
    if not column:
        return {"train": np.arange(len(table))}
    cells = table.complete(column, "write train, val or test")
    for row, cell in enumerate(cells):
        if cell.lower() not in SPLITS:
            raise DataError(
                f"{table.where(row)}: {quote_key(column)} names no split; "
                f"{did_you_mean(cell.lower(), SPLITS)}"
            )
    named = np.array([SPLITS[cell.lower()] for cell in cells])
    rows = {name: np.flatnonzero(named == name) for name in dict.fromkeys(SPLITS.values())}
    if not len(rows["train"]):
        raise DataError(
            f"{table.path}: no row is for training; write train in column {quote_key(column)}."
        )
    return {name: found for name, found in rows.items() if len(found)}


def require_disjoint(
    table: Table, files: Mapping[int, Path], rows: Mapping[str, NDArray[np.int64]]
) -> None:
    """Refuse a file that rows of two splits list.

    Args:
        table: The table.
        files: The file of each row.
        rows: The rows of each split.

    Raises:
        DataError: Such a file exists.
    """
    listed: dict[Path, tuple[str, int]] = {}
    for split, found in rows.items():
        for row in found.tolist():
            other, first = listed.setdefault(files[row], (split, row))
            if other != split:
                raise DataError(
                    f"{table.where(row)}: {files[row]} is for {split}, and in {table.unit} "
                    f"{table.numbers[first]} for {other}; leave one row out."
                )
