"""Forecasts of a grid's cells, or refusals, before any training."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

from attrs import frozen

from cohortium.catalog.discovery import discover
from cohortium.errors import CohortiumError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from cohortium.federation import Federation
    from cohortium.grid.cells import Cell
    from cohortium.runs.forecast import Forecast


@frozen(kw_only=True)
class CellForecast:
    """Forecast of one cell.

    Attributes:
        cell: The cell.
        forecasts: One for each budget. Empty if the cell is refused.
        refusal: The reason why it cannot be run, in a sentence. Empty if it can.
        traceback: The traceback, if the cause was no user's mistake.
    """

    cell: Cell
    forecasts: tuple[Forecast, ...] = ()
    refusal: str = ""
    traceback: str = ""


def forecast_cells(
    runs: Iterable[tuple[Cell, int]], epsilons: Sequence[float] = ()
) -> Iterator[CellForecast]:
    """Prepare and plan each cell, as `cohortium plan` does for a study.

    The refusal of one cell does not stop the others.

    Args:
        runs: Cells and seeds. Only the first seed of each cell is used.
        epsilons: Budgets for which each cell is planned. If empty, its own.
    """
    first: dict[str, tuple[Cell, int]] = {}
    for cell, seed in runs:
        first.setdefault(cell.name, (cell, seed))
    catalog = discover()
    for cell, seed in first.values():
        try:
            outlooks = _forecasts(cell.federation(seed, catalog), epsilons)
        except CohortiumError as error:
            yield CellForecast(cell=cell, refusal=str(error))
        except Exception as error:  # noqa: BLE001 - a fault in one cell's plugin, reported in full
            sentence = f"{type(error).__name__}: {error}"
            yield CellForecast(cell=cell, refusal=sentence, traceback=traceback.format_exc())
        else:
            yield CellForecast(cell=cell, forecasts=outlooks)


def _forecasts(study: Federation, epsilons: Sequence[float]) -> tuple[Forecast, ...]:
    from cohortium.runs import forecast

    # Checks the budgets before anything is loaded.
    forecast.with_budgets(study.privatizer, epsilons)
    return forecast.forecast(study.prepare(), epsilons)


def forecast_table(rows: Sequence[tuple[Cell, Forecast]]) -> str:
    """Return a Markdown table with a row for each cell and budget.

    The growth of ε is left out, because cells with other rounds would need columns of their own.
    """
    lines = [{**cell.place, **_columns(outlook)} for cell, outlook in rows]
    head = list(dict.fromkeys(key for line in lines for key in line))
    table = [head, ["---"] * len(head), *([line.get(key, "–") for key in head] for line in lines)]
    return "".join(f"| {' | '.join(line)} |\n" for line in table if head)


def _columns(outlook: Forecast) -> dict[str, str]:
    return {label: value for label, value in outlook.rows() if not label.startswith("ε after")}
