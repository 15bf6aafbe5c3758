r"""Tables as CSV (RFC 4180) that a spreadsheet opens as words and numbers.

A spreadsheet takes a cell that begins with `=`, `+`, `-` or `@` for a formula, also in a file. The
name of a class or of an image comes from another party's file. So `write` puts an apostrophe before
such a word, which makes it text, and `read` removes that apostrophe. A number is written unchanged.

    >>> write([["class", "share"], ["=1+1", -0.5]])
    "class,share\n'=1+1,-0.5\n"
    >>> read("class,share\n'=1+1,-0.5\n")
    [['class', 'share'], ['=1+1', '-0.5']]
"""

from __future__ import annotations

import csv
import io
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Programs skip spaces. They treat the wide and small forms of East Asian keyboards, and the minus
# of mathematics, as the plain characters.
_WIDE = "\uff1d\uff0b\uff0d\uff20\ufe66\ufe62\ufe63\ufe6b\u2212"
_FORMULA = re.compile(rf"'*(?:\s*[=+\-@{_WIDE}]|[\t\r\n])")

_NUMBER = re.compile(r"'*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)

# Separators of cells, instead of the comma, and of lines, in programs of some languages.
_SEPARATORS = re.compile(r"[;\t\r]")


def write(rows: Iterable[Sequence[object]]) -> str:
    """Return the text of a CSV file, with a line for each of `rows`.

    Guarantees:
        No cell begins a formula, in a program that splits cells at commas, semicolons or tabs.
        `read` returns every cell's text.
    """
    cells = [[_escape(value) for value in row] for row in rows]
    parted = any(isinstance(c, str) and _SEPARATORS.search(c) for row in cells for c in row)
    text = io.StringIO()
    if parted:
        csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(cells)
    else:
        csv.writer(text, lineterminator="\n").writerows(cells)
    return text.getvalue()


def read(text: str) -> list[list[str]]:
    """Return the rows that `write` wrote, with every cell's original text."""
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    return [[cell[1:] if _is_escaped(cell) else cell for cell in row] for row in rows]


def _escape(value: object) -> object:
    if isinstance(value, str) and _is_formula(value):
        return f"'{value}"
    return value


def _is_formula(text: str) -> bool:
    """Return whether `text` would be a formula, also after leading apostrophes."""
    return bool(_FORMULA.match(text)) and not _NUMBER.fullmatch(text)


def _is_escaped(cell: str) -> bool:
    return cell.startswith("'") and _is_formula(cell)
