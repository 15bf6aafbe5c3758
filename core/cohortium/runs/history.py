"""A run's rounds as a tidy table.

It has a row per round and a column per quantity.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, TypeAlias

from cohortium.roles.events import RoundCompleted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Cell: TypeAlias = int | float | None
"""Content of a table's cell: a number, or nothing."""


class History(tuple[RoundCompleted, ...]):
    """Events of a run's rounds, in order, which print as a table.

    `pandas.DataFrame(result.history.rows())` is a data frame, and so is
    `polars.DataFrame(result.history.rows())`. Cohortium needs neither package.
    """

    __slots__ = ()

    def rows(self) -> list[dict[str, Cell]]:
        """Return one dictionary per round, all with the same keys.

        The column `round` counts from 1. The column `attempt` counts over the run from 0, as in
        events and the ledger. The metrics of the task, such as `accuracy` and `loss`, are scores
        on the validation images, and None if these were not scored. The column
        `majority_share` is the accuracy of always predicting the most frequent class, under the
        same condition. The column `epsilon` is the guarantee's ε for all attempts so far, or None
        without privacy. The column `plan_state` is the number that the privatizer adapts, such as
        the clip norm, after the round. It is there only if there is one. Several numbers are
        `plan_state_1` and so on. The columns `contributors` and `dropped` are numbers of sites. The
        column `upload_bytes` is the largest number of bytes that one site sent.
        """
        metrics = dict.fromkeys(
            name for event in self if event.scores is not None for name in event.scores.metrics
        )
        return [event.row(tuple(metrics)) for event in self]

    def attempt_rounds(self, attempts: int) -> list[int]:
        """Return the round of each of the first `attempts` attempts.

        An attempt that no completed round ends was made at the round after the last one.
        """
        found: list[int] = []
        for event in self:
            found += [event.round] * (event.attempt + 1 - len(found))
        return [*found, *[len(self)] * (attempts - len(found))]

    def __repr__(self) -> str:
        """Return the table as text, with the columns' names."""
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
        """Return the table for a notebook."""
        return html_table(self.rows())


def html_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return `rows`, all with the same keys, as an HTML table.

    The function escapes every word.
    """
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
