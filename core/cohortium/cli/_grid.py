"""`cohortium run` of a grid, and `cohortium compare`: many runs, and the difference of two."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import attrs
import typer

from cohortium.cli._streams import json_text
from cohortium.errors import told
from cohortium.places import require_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cohortium.grid import Grid, Outcome


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
    """Do what is not finished of a grid, and write its table; exit with 1 if a run failed."""
    from cohortium import grid as grids

    folder = out or Path("runs") / grid.name
    runs = grids.plan(grid, folder, only)
    if dry_run:
        for each in runs:
            typer.echo(f"{each.state:>10}  {each.name}")
        return
    require_folder(folder)
    failed = []
    for count, outcome in enumerate(grids.run(runs, jobs=jobs, observe=observe, own=own), 1):
        _tell(outcome, f"[{count}/{len(runs)}]")
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
            typer.echo(told(f"cohortium: {outcome.run.name} failed: {outcome.failure}"), err=True)
        raise typer.Exit(1)


def _tell(outcome: Outcome, count: str) -> None:
    """One line for each run, on the way."""
    if outcome.fault:
        typer.echo(told(outcome.fault), err=True)
    if outcome.failure:
        word = "failed"
    else:
        word = "already finished" if outcome.run.state == "finished" else "finished"
    typer.echo(f"{count} {outcome.run.name} {word}", err=True)


def compare(
    first: Annotated[Path, typer.Argument(help="A cell's folder of a grid, or one run's.")],
    second: Annotated[Path, typer.Argument(help="What it is compared with.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell by how much one is better than another.

    A paired bootstrap over seeds and test images gives the interval.

    Examples:
      cohortium compare runs/paper/sites=10,privacy=off runs/paper/sites=10,privacy=on
    """
    from cohortium import grid as grids

    found = grids.compare(first, second)
    if as_json:
        typer.echo(json_text([attrs.asdict(d) for d in found]))
    else:
        for difference in found:
            typer.echo(str(difference))
