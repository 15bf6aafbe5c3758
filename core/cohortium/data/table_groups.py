"""Columns of groups in a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cohortium.data.groups import (
    ADVICE,
    MAX_VALUE_LENGTH,
    MAX_VALUES,
    NOT_STATED,
    GroupColumn,
    can_show,
)
from cohortium.data.table import MISSING_NAMES
from cohortium.errors import DataError
from cohortium.text import quote_key

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cohortium.data.table import Table


def read_group(table: Table, column: str) -> tuple[GroupColumn, NDArray[np.int64]]:
    """Return a table's column of groups, and the code of each row, shape (N,).

    An empty cell, or one that programs write for a missing value (`MISSING_NAMES`), is not stated.
    Errors repeat no cell.

    Raises:
        DataError: The column has more than `MAX_VALUES` values. Or a value cannot be shown, or two
            differ in case or spaces alone.
    """
    cells = ["" if cell.casefold() in MISSING_NAMES else cell for cell in table.columns[column]]
    alike: dict[str, tuple[int, str]] = {}
    for row, cell in enumerate(cells):
        if cell and not can_show(cell):
            raise DataError(
                f"{table.where(row)}: {quote_key(column)} cannot be shown or has more than "
                f"{MAX_VALUE_LENGTH} characters; write a short name of a group."
            )
        other, text = alike.setdefault(" ".join(cell.casefold().split()), (row, cell))
        if text != cell:
            raise DataError(
                f"{table.where(row)}: {quote_key(column)} differs from {table.unit} "
                f"{table.numbers[other]} in case or spaces alone; write both alike."
            )
    values = {cell for cell in cells if cell}
    if len(values) > MAX_VALUES:
        raise DataError(
            f"{table.path}: column {quote_key(column)} has {len(values):,} different values, and "
            f"at most {MAX_VALUES} {ADVICE}."
        )
    order: Any = int if all(cell.isascii() and cell.isdecimal() for cell in values) else str
    names = tuple(sorted(values, key=lambda cell: (order(cell), cell)))
    code = {"": NOT_STATED} | {name: index for index, name in enumerate(names)}
    return GroupColumn(column, names), np.array([code[cell] for cell in cells], dtype=np.int64)
