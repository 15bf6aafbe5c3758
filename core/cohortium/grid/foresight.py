"""What the cells of a grid promise, or why they are refused, before any of them trains."""

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
    """What a cell would come to.

    Attributes:
        cell: Which.
        forecasts: One for each budget; none where it is refused.
        refusal: Why it cannot be run, in a sentence; empty if it can.
        traceback: The traceback, where that was no user's mistake.
    """

    cell: Cell
    forecasts: tuple[Forecast, ...] = ()
    refusal: str = ""
    traceback: str = ""


def forecast_cells(
    runs: Iterable[tuple[Cell, int]], epsilons: Sequence[float] = ()
) -> Iterator[CellForecast]:
    """Prepare and plan each cell, as `cohortium plan` does a study; a refusal stops no other.

    Args:
        runs: Cells and seeds; of each cell the first seed is looked at.
        epsilons: Budgets to plan each cell for; none: its own.
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
        except Exception as error:  # noqa: BLE001 - a fault in one cell's plugin; told in full
            sentence = f"{type(error).__name__}: {error}"
            yield CellForecast(cell=cell, refusal=sentence, traceback=traceback.format_exc())
        else:
            yield CellForecast(cell=cell, forecasts=outlooks)


def _forecasts(study: Federation, epsilons: Sequence[float]) -> tuple[Forecast, ...]:
    from cohortium.runs import forecast

    # Before anything is loaded.
    forecast.with_budgets(study.privatizer, epsilons)
    return forecast.forecast(study.prepare(), epsilons)


def forecast_table(rows: Sequence[tuple[Cell, Forecast]]) -> str:
    """A Markdown table with a row for each cell and budget.

    How ε grows is left out: cells of other rounds would each have columns of their own.
    """
    lines = [{**cell.place, **_columns(outlook)} for cell, outlook in rows]
    head = list(dict.fromkeys(key for line in lines for key in line))
    table = [head, ["---"] * len(head), *([line.get(key, "–") for key in head] for line in lines)]
    return "".join(f"| {' | '.join(line)} |\n" for line in table if head)


def _columns(outlook: Forecast) -> dict[str, str]:
    return {label: value for label, value in outlook.rows() if not label.startswith("ε after")}
