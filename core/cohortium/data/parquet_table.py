"""Columns of a Parquet file, read with pyarrow, which is an extra."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from cohortium.data.table_header import find_columns, require_small
from cohortium.errors import DataError
from cohortium.text import quote_key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def read_parquet(
    path: Path, wanted: Sequence[str], keys: Mapping[str, str]
) -> tuple[dict[str, tuple[str, ...]], tuple[int, ...]]:
    """Return the cells of the wanted columns as text, and the number of each row from 1.

    A missing value and NaN become "", true and false "1" and "0".

    Raises:
        DataError: pyarrow is missing. Or the file is missing, damaged or too large, lacks a
            column, or has one of another kind than text and numbers.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DataError(
            f"{path} needs pyarrow; pip install 'cohortium[parquet]', or save the table as CSV."
        ) from error
    columns: dict[str, list[str]] = {name: [] for name in wanted}
    try:
        with path.open("rb") as stream, parquet.ParquetFile(stream) as file:
            find_columns(file.schema_arrow.names, wanted, path, keys)
            _require_plain(file.schema_arrow, wanted, path)
            require_small(path, _unpacked_size(file.metadata, wanted))
            for batch in file.iter_batches(columns=list(wanted)):
                for name, cells in columns.items():
                    cells += [_text(value) for value in batch.column(name).to_pylist()]
    except (ArrowException, OSError, ValueError, TypeError, KeyError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200].rstrip(".")
        raise DataError(
            f"{path} cannot be read as a Parquet file ({reason}); copy it anew, or save it as CSV."
        ) from error
    rows = len(next(iter(columns.values()), ()))
    return {name: tuple(cells) for name, cells in columns.items()}, tuple(range(1, rows + 1))


def _require_plain(schema: Any, wanted: Sequence[str], path: Path) -> None:
    from pyarrow import types

    for name in wanted:
        kind = schema.field(name).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        plain = (
            types.is_string, types.is_large_string, types.is_integer, types.is_floating,
            types.is_boolean, types.is_null,
        )  # fmt: skip
        if not any(is_kind(kind) for is_kind in plain):
            raise DataError(
                f"{path}: column {quote_key(name)} is of type {kind}; save it as text or numbers."
            )


def _unpacked_size(metadata: Any, wanted: Sequence[str]) -> int:
    """Return the bytes of the wanted columns, as the file states them."""
    size = 0
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            column = metadata.row_group(group).column(index)
            if column.path_in_schema in wanted:
                # A row takes a few bytes in Python, even if all rows share one value in the file.
                size += max(column.total_uncompressed_size, column.num_values)
    return size


def _text(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(int(value)) if isinstance(value, bool) else str(value).strip()
