"""Columns of labels in a table: one class for each image, or several findings."""

from __future__ import annotations

import difflib
import itertools
import re
from collections import Counter
from typing import TYPE_CHECKING, Final

import numpy as np

from cohortium.data.labels import class_names, label_column
from cohortium.errors import DataError
from cohortium.text import MAX_SHOWN, did_you_mean, elide_middle, quote_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from cohortium.data.table import Table

FEW_NAMES: Final = 20
"""Number of classes up to which no column is taken for one of identifiers."""

MAX_UNKNOWN: Final = 10
"""Largest number of labels that are no class and whose place an error names."""

UNKNOWN: Final = -1
"""A finding of which nobody knows whether the image has it."""

_WHOLE: Final = re.compile(r"[+-]?\d{1,18}(?:\.0*)?", re.ASCII)
_NUMBER: Final = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)

_FINDINGS: Final = {0: 0, 1: 1, UNKNOWN: UNKNOWN}


def class_labels(
    table: Table, column: str, classes: Sequence[str] = ()
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return the class of each row as a number from 0, with the names of the classes.

    A cell is a name or a number of a class. If all cells are whole numbers that are no declared
    names, they number the classes from 0.

    Args:
        table: The table.
        column: Name of the column.
        classes: The declared names in the order of their numbers. Without them, the names are the
            sorted cells, or the numbers.

    Returns:
        Labels, shape (N,), and the K names.

    Raises:
        DataError: A cell is empty or is no class. Or, without declared names, the cells are
            measurements or identifiers, or all are equal, or two differ in upper case alone.
    """
    cells = table.complete(column, "leave out images without a class")
    where = f"{table.path}: column {quote_key(column)}"
    if not set(cells) <= set(classes) and all(_WHOLE.fullmatch(cell) for cell in cells):
        numbers = np.array([int(cell.split(".")[0]) for cell in cells], dtype=np.int64)
        if not classes:
            labels = label_column(numbers, len(cells), where)
            return labels, class_names({"train": labels}, (), where)
        for row in np.flatnonzero((numbers < 0) | (numbers >= len(classes)))[:1]:
            raise DataError(
                f"{table.where(row)}: the label {numbers[row]} is beyond the {len(classes)} "
                "declared classes, which are numbered from 0; correct it, or name more classes."
            )
        return numbers, tuple(classes)
    names = tuple(classes) or _derive_names(table, column, cells)
    number = {name: index for index, name in enumerate(names)}
    if unknown := Counter(cell for cell in cells if cell not in number):
        raise DataError(_unknown_labels(table, column, unknown, names))
    return np.array([number[cell] for cell in cells], dtype=np.int64), names


def _unknown_labels(table: Table, column: str, unknown: Counter[str], names: Sequence[str]) -> str:
    """Return a sentence about all labels that are no declared class, and repeat none of them.

    Args:
        table: The table.
        column: Its column of labels.
        unknown: Number of rows of each such label, in the order of the table.
        names: The declared classes.
    """
    cells = table.columns[column]
    first, *others = ((cells.index(cell), cell) for cell in itertools.islice(unknown, MAX_UNKNOWN))
    if not others:
        row, cell = first
        return (
            f"{table.where(row)}: {quote_key(column)} is none of the declared classes; "
            f"{elide_middle(did_you_mean(cell, names))}"
        )
    places = []
    for row, cell in (first, *others):
        close = difflib.get_close_matches(cell[:MAX_SHOWN], names, n=1, cutoff=0.6)
        advice = f" (did you mean {quote_key(close[0])}?)" if close else ""
        places.append(f"{table.unit} {table.numbers[row]}{advice}")
    more = ", …" if len(unknown) > MAX_UNKNOWN else ""
    return (
        f"{table.path}: {quote_key(column)} is none of the declared classes in "
        f"{unknown.total():,} rows, with {len(unknown):,} different labels, first in "
        f"{', '.join(places)}{more}; correct them, or declare more classes."
    )


def finding_labels(table: Table, columns: Sequence[str]) -> NDArray[np.int8]:
    """Return several findings of each row, shape (N, K): 1, 0, or -1 if unknown.

    Args:
        table: The table.
        columns: Names of the K columns. Their cells are 1, 0, or -1 or empty if unknown.

    Raises:
        DataError: A cell has another value. The sentence names its row and column.
    """
    labels = np.empty((len(table), len(columns)), np.int8)
    for index, column in enumerate(columns):
        for row, cell in enumerate(table.columns[column]):
            value = int(float(cell)) if _WHOLE.fullmatch(cell) else None
            if cell and value not in _FINDINGS:
                raise DataError(
                    f"{table.where(row)}: {quote_key(column)} is not 0, 1, -1 or empty; write 1 "
                    "for a finding, 0 for none, and -1 or nothing if it is unknown."
                )
            labels[row, index] = UNKNOWN if value is None else value
    return labels


def _derive_names(table: Table, column: str, cells: Sequence[str]) -> tuple[str, ...]:
    """Return the different cells in their order, if they can be names of classes.

    The wrong column may name patients, and so no error repeats a cell.
    """
    where, names = f"{table.path}: column {quote_key(column)}", tuple(sorted(set(cells)))
    for row, cell in enumerate(cells):
        if _NUMBER.fullmatch(cell) and not _WHOLE.fullmatch(cell):
            raise DataError(
                f"{table.where(row)}: {quote_key(column)} is a measurement; a class is one of a "
                "few names or whole numbers."
            )
    if len(names) > max(FEW_NAMES, len(cells) // 2):
        raise DataError(
            f"{where} has {len(names)} different texts in {len(cells)} rows, as identifiers do; "
            "give the column of the classes, or declare classes."
        )
    if len(names) == 1:
        raise DataError(
            f"{where} has the same text in every row, and of one class alone every answer is "
            "right; list images of two or more, or declare classes."
        )
    alike: dict[str, tuple[int, str]] = {}
    for row, cell in enumerate(cells):
        other, text = alike.setdefault(" ".join(cell.casefold().split()), (row, cell))
        if text != cell:
            raise DataError(
                f"{table.where(row)}: {quote_key(column)} differs from {table.unit} "
                f"{table.numbers[other]} in case or spaces alone; write both alike, or declare "
                "classes."
            )
    return names
