"""Markdown of a model card, whose words are from other parties."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cohortium.text import escape_markdown, markdown_code

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Code(str):
    """A text that `table` shows as code."""

    __slots__ = ()


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table.

    Args:
        head: Names of the columns.
        rows: Cells of each row, of any type.
    """
    lines = [[_cell(cell) for cell in line] for line in (head, *rows)]
    lines.insert(1, ["---"] * len(head))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: object) -> str:
    """Return a text of a data set or a study as one line of plain Markdown text.

    It lacks a full stop at its end.
    """
    return escape_markdown(str(text)).rstrip(".")


def _cell(value: object) -> str:
    # A table ends a cell at each bar, also within code.
    return markdown_code(value).replace("|", "\\|") if isinstance(value, Code) else plain(value)
