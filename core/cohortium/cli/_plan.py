"""`cohortium plan`: the numbers of a study before any training."""

from __future__ import annotations

from typing import Annotated

import typer

from cohortium.cli import _printing
from cohortium.cli._grid import plan_grid
from cohortium.cli._options import Only, Overrides, Study, federation_of
from cohortium.cli._streams import json_text
from cohortium.cli._tune import plan_file
from cohortium.errors import RequestError


def plan(
    study: Study = None,
    *,
    overrides: Overrides = None,
    epsilon: Annotated[
        list[float] | None, typer.Option(help="A budget to plan for; may be repeated.")
    ] = None,
    only: Only = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compute a study's or a grid's numbers before any training.

    Prints steps and batches, noise, ε by round, bytes, and how many sites may drop out or collude.
    Of a study with a [tune], it prints the price of the search and of the final run.

    Examples:
      cohortium plan
      cohortium plan study.toml --epsilon 1 --epsilon 6
      cohortium plan grid.toml --only sites=10
    """
    from rich.table import Table

    from cohortium import grid as grids
    from cohortium.cli._estimates import print_forecast
    from cohortium.runs import forecast
    from cohortium.runs.evaluate import prepare_evaluation
    from cohortium.runs.evaluation_forecast import forecast_evaluation
    from cohortium.tuning import has_tuning

    if study is not None and grids.is_grid(study):
        grid = grids.read(study, overrides or [])
        plan_grid(grid, only=only or [], epsilons=epsilon or [], as_json=as_json)
        return
    if study is not None and has_tuning(study):
        if only or epsilon:
            raise RequestError("--only and --epsilon are for a study file without a [tune].")
        plan_file(study, overrides, as_json=as_json)
        return
    if only:
        raise RequestError("--only is for a study file with a [grid].")
    federation = federation_of(study, overrides, is_quiet=as_json)
    # Checks the budgets before anything is loaded.
    forecast.with_budgets(federation.privatizer, epsilon or [])
    prepared = federation.prepare()
    outlooks = forecast.forecast(prepared, epsilon or [])
    evaluation = None
    if federation.evaluation is not None:
        evaluation = forecast_evaluation(
            prepare_evaluation(federation, federation.evaluation, prepared)
        )
    if as_json:
        told = {} if evaluation is None else {"evaluation": evaluation.as_json()}
        typer.echo(json_text([o.as_json() | told for o in outlooks]))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for cells in zip(*(o.rows() for o in outlooks), strict=True):
        table.add_row(cells[0][0], *(value for _, value in cells))
    console = _printing.console()
    console.print(table)
    for warning in dict.fromkeys(w for o in outlooks for w in o.warnings):
        console.print(warning, soft_wrap=True)
    if evaluation is not None:
        print_forecast(console, evaluation)
