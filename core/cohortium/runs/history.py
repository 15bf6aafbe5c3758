"""A run's rounds as a tidy table: one row a round, one column a quantity."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, TypeAlias

from cohortium.roles.events import RoundCompleted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Cell: TypeAlias = int | float | None
"""What a table holds: a number, or nothing."""


class History(tuple[RoundCompleted, ...]):
    """The events of a run's rounds, in order, which show themselves as a table.

    `pandas.DataFrame(result.history.rows())` is a data frame, and so is
    `polars.DataFrame(result.history.rows())`; neither is needed here.
    """

    __slots__ = ()

    def rows(self) -> list[dict[str, Cell]]:
        """One dictionary a round, all with the same keys.

        `round` counts from 1.  `attempt` counts over the run from 0, as events and the ledger do.
        `accuracy`, `balanced_accuracy`, `auc` and `loss` are of the validation images, and None
        where they were not scored; so is `majority_share`, the accuracy of whoever calls all of
        them the most frequent class.
        `epsilon` is what all attempts so far promise, None without privacy.  `contributors` and
        `dropped` are numbers of sites, `upload_bytes` is the largest that one site sent.
        """
        return [event.row() for event in self]

    def __repr__(self) -> str:
        """The table as text: a row a round, under the columns' names."""
        rows = self.rows()
        if not rows:
            return "no rounds"
        lines = [list(rows[0]), *([_shown(cell) for cell in row.values()] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            for line in lines
        )

    def _repr_html_(self) -> str:
        """For a notebook."""
        return html_table(self.rows())


def html_table(rows: Sequence[Mapping[str, object]]) -> str:
    """`rows`, all with the same keys, as an HTML table of which every word is escaped."""
    columns = list(rows[0]) if rows else []
    head = "".join(f"<th>{escape(column.replace('_', ' '))}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_shown(row[column]))}</td>" for column in columns) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else str(value)
