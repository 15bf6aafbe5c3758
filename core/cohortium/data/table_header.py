"""The names of a table's columns, compared with those that are asked for."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from cohortium.data.image_file import IMAGE_SUFFIXES
from cohortium.errors import DataError
from cohortium.text import did_you_mean, elide_middle, quote_key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

MAX_TABLE_BYTES: Final = 1 << 28
"""Largest size of a table in bytes.

The largest public set of chest images, with all its reports, has a table of half of that.
"""


def find_columns(
    names: Sequence[str],
    wanted: Sequence[str],
    path: Path,
    keys: Mapping[str, str] = MappingProxyType({}),
) -> list[int]:
    """Return the position of each wanted column.

    Args:
        names: Names of all columns, in their order.
        wanted: Names of the columns to find.
        path: The table, for an error.
        keys: The key of a data set that names each column, for an error.

    Raises:
        DataError: A column is missing or occurs twice. Or the table has no line of names.
    """
    # A row of data in their place may name a patient, and so no error may repeat it.
    if any(name.lower().endswith(IMAGE_SUFFIXES) for name in names):
        raise DataError(
            f"{path} begins with a row of an image; write the names of the columns in its first "
            f"line, such as {','.join(wanted)}."
        )
    for name in wanted:
        if name not in names:
            advice = f"set {keys[name]} of the data set to another: " if name in keys else ""
            raise DataError(
                f"{path} has no column {quote_key(name)}; "
                f"{advice}{elide_middle(did_you_mean(name, names))}"
            )
        if names.count(name) > 1:
            raise DataError(f"{path} has two columns {quote_key(name)}; rename or remove one.")
    return [names.index(name) for name in wanted]


def require_small(path: Path, size: int) -> None:
    """Refuse a table of more than `MAX_TABLE_BYTES`.

    Raises:
        DataError: `size`, its bytes, is larger.
    """
    if size > MAX_TABLE_BYTES:
        raise DataError(
            f"{path} takes {size / 2**20:,.0f} MiB, and a table may take "
            f"{MAX_TABLE_BYTES / 2**20:,.0f} MiB; leave out columns, or split it."
        )
