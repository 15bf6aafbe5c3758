"""`cohortium run` of a grid, and `cohortium compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cohortium.cli._streams import json_text
from cohortium.storage.writable import check_directory_writable
from cohortium.text import sanitize

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cohortium.grid import CellForecast, Grid, GridRun, GridRunResult


def run_grid(
    grid: Grid,
    *,
    out: Path | None,
    only: Sequence[str],
    jobs: int,
    dry_run: bool,
    observe: Sequence[str],
    own: Sequence[str],
    as_json: bool,
) -> None:
    """Run the unfinished cells of a grid, and write its table.

    Exits with 1 if a run failed.
    """
    from cohortium import grid as grids

    folder = out or Path("runs") / grid.name
    runs = grids.plan(grid, folder, only)
    if dry_run:
        _dry_run(runs)
        return
    check_directory_writable(folder)
    failed = []
    for count, outcome in enumerate(grids.run(runs, jobs=jobs, observe=observe, own=own), 1):
        _print_outcome(outcome, f"[{count}/{len(runs)}]")
        if outcome.failure:
            failed.append(outcome)
    table = grids.rows(grid, folder)
    grids.write(grid, table, folder)
    if as_json:
        axes = [axis.name for axis in grid.axes]
        lines = list(grids.figures(axes, table))
        typer.echo(json_text(lines))
    else:
        typer.echo(grids.markdown([axis.name for axis in grid.axes], table), nl=False)
        typer.echo(f"\ntable, plot, and a link to each run's report: {folder / 'table.md'}")
    if failed:
        for outcome in failed:
            typer.echo(
                sanitize(f"cohortium: {outcome.run.name} failed: {outcome.failure}"), err=True
            )
        raise typer.Exit(1)


def warn_ignored_keys(grid: Grid, only: Sequence[str]) -> None:
    """Print the keys that the chosen cells ignore.

    They are keys of the file and of the settings.
    """
    cells = {cell.name: cell for cell, _ in grid.select(only)}
    told = [sentence for cell in cells.values() for sentence in cell.ignored_keys]
    for sentence in dict.fromkeys([*grid.ignored_keys, *told]):
        typer.echo(sanitize(sentence), err=True)


def _dry_run(runs: Sequence[GridRun]) -> None:
    """List the runs, and prepare each cell that has unfinished runs.

    Exits with 2 if a cell is refused.
    """
    from cohortium import grid as grids

    waiting = [(each.cell, each.seed) for each in runs if each.state != "finished"]
    found = {each.cell.name: each for each in grids.forecast_cells(waiting) if each.refusal}
    for each in runs:
        is_refused = each.cell.name in found and each.state != "finished"
        typer.echo(f"{'refused' if is_refused else each.state:>10}  {each.name}")
    _end_refused(found.values())


def plan_grid(grid: Grid, *, only: Sequence[str], epsilons: Sequence[float], as_json: bool) -> None:
    """Print one table of each cell's forecast, before any training.

    Exits with 2 if a cell is refused.
    """
    from cohortium import grid as grids
    from cohortium.catalog.discovery import discover

    if not as_json:
        warn_ignored_keys(grid, only)
    grid.require_distinct(discover())
    found = list(grids.forecast_cells(grid.select(only), epsilons))
    rows = [(each.cell, outlook) for each in found for outlook in each.forecasts]
    if as_json:
        lines = [{"cell": dict(cell.place), "outlook": o.as_json()} for cell, o in rows]
        typer.echo(json_text(lines))
    else:
        typer.echo(grids.forecast_table(rows), nl=False)
        for warning in dict.fromkeys(w for _, outlook in rows for w in outlook.warnings):
            typer.echo(warning)
    _end_refused([each for each in found if each.refusal])


def _end_refused(found: Iterable[CellForecast]) -> None:
    refused = list(found)
    for each in refused:
        if each.traceback:
            typer.echo(sanitize(each.traceback), err=True)
        typer.echo(sanitize(f"cohortium: {each.cell.name} is refused: {each.refusal}"), err=True)
    if refused:
        raise typer.Exit(2)


def _print_outcome(outcome: GridRunResult, count: str) -> None:
    """Print one line for each run when it ends."""
    if outcome.traceback:
        typer.echo(sanitize(outcome.traceback), err=True)
    if outcome.failure:
        word = "failed"
    else:
        word = "already finished" if outcome.run.state == "finished" else "finished"
    typer.echo(f"{count} {outcome.run.name} {word}", err=True)


def compare(
    first: Annotated[Path, typer.Argument(help="A cell's folder of a grid, or one run's.")],
    second: Annotated[Path, typer.Argument(help="Run or cell to compare it with.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure the difference in accuracy between two runs or cells.

    A paired bootstrap over seeds and test images gives the interval. It needs three seeds.

    Examples:
      cohortium compare runs/paper/sites=10,privacy=off runs/paper/sites=10,privacy=on
    """
    from cohortium import grid as grids

    found = grids.contrast(first, second)
    if as_json:
        typer.echo(json_text(found.as_json()))
    else:
        typer.echo(str(found))
