"""Markdown of a model card, whose words are from other parties."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table.

    Args:
        head: Names of the columns.
        rows: Cells of each row, of any type.
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(plain(str(cell)) for cell in line)} |" for line in lines)


def plain(text: str) -> str:
    """Return `text` as one line of plain Markdown text.

    The text is from a data set or a study.
    """
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return shown.replace("|", "\\|").replace("<", "&lt;").rstrip(".")
