r"""Tables as CSV (RFC 4180) that a spreadsheet opens as what they are: words and numbers.

A spreadsheet takes a cell that begins with `=`, `+`, `-` or `@` for a formula, also in a file.  The
name of a class or of an image comes from a file of somebody else's.  So such a word is written with
an apostrophe before it, which makes it text, and `read` takes that apostrophe off again.  A number
is written as it is.

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

# Programs skip spaces, and take the wide and small forms of East Asian keyboards, and the minus of
# mathematics, for the plain ones.
_WIDE = "\uff1d\uff0b\uff0d\uff20\ufe66\ufe62\ufe63\ufe6b\u2212"
_FORMULA = re.compile(rf"'*(?:\s*[=+\-@{_WIDE}]|[\t\r\n])")

_NUMBER = re.compile(r"'*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)

# What programs of some languages part cells at, instead of the comma, and lines.
_SEPARATORS = re.compile(r"[;\t\r]")


def write(rows: Iterable[Sequence[object]]) -> str:
    """The text of a CSV file, a line each of `rows`.

    Guarantees:
        No cell begins a formula, in a program that parts cells at commas, semicolons or tabs.
        `read` gives every cell's text back.
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
    """The rows of what `write` wrote, every cell as its text was."""
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    return [[cell[1:] if _is_escaped(cell) else cell for cell in row] for row in rows]


def _escape(value: object) -> object:
    if isinstance(value, str) and _is_formula(value):
        return f"'{value}"
    return value


def _is_formula(text: str) -> bool:
    """Whether `text` would be a formula, also where apostrophes stand before it already."""
    return bool(_FORMULA.match(text)) and not _NUMBER.fullmatch(text)


def _is_escaped(cell: str) -> bool:
    return cell.startswith("'") and _is_formula(cell)
