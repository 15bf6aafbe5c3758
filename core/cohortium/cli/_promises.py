"""`cohortium plan` and `cohortium audit`: forecast and tests of a guarantee."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cohortium.cli import _printing
from cohortium.cli._grid import plan_grid
from cohortium.cli._options import Only, Overrides, Study, federation_of
from cohortium.cli._streams import json_text
from cohortium.errors import RequestError, RunError
from cohortium.storage.atomic import atomic_write
from cohortium.storage.writable import check_new_file


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

    Examples:
      cohortium plan
      cohortium plan study.toml --epsilon 1 --epsilon 6
      cohortium plan grid.toml --only sites=10
    """
    from rich.table import Table

    from cohortium import grid as grids
    from cohortium.runs import forecast

    if study is not None and grids.is_grid(study):
        grid = grids.read(study, overrides or [])
        plan_grid(grid, only=only or [], epsilons=epsilon or [], as_json=as_json)
        return
    if only:
        raise RequestError("--only is for a study file with a [grid].")
    federation = federation_of(study, overrides, is_quiet=as_json)
    # Checks the budgets before anything is loaded.
    forecast.with_budgets(federation.privatizer, epsilon or [])
    outlooks = forecast.forecast(federation.prepare(), epsilon or [])
    if as_json:
        typer.echo(json_text([o.as_json() for o in outlooks]))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for cells in zip(*(o.rows() for o in outlooks), strict=True):
        table.add_row(cells[0][0], *(value for _, value in cells))
    console = _printing.console()
    console.print(table)
    for warning in dict.fromkeys(w for o in outlooks for w in o.warnings):
        console.print(warning, markup=False, soft_wrap=True)


def audit(
    study: Study = None,
    *,
    overrides: Overrides = None,
    samples: Annotated[
        int, typer.Option(help="Noised sums in each of two worlds.", min=1000, max=10_000_000)
    ] = 20_000,
    canaries: Annotated[
        int,
        typer.Option(help="In one run; 0 chooses, and may leave the run out.", min=0, max=100_000),
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="A file for the findings as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Test a study's guarantee by measurement.

    Exits with 1 if the claim is refuted.

    Examples:
      cohortium audit study.toml
      cohortium audit --set privatizer.epsilon=1 --out findings.json
    """
    from rich.console import Console

    from cohortium import auditing

    if out is not None:
        check_new_file(out, remedy="give another file with --out")
    ready = federation_of(study, overrides, is_quiet=as_json).prepare()
    with Console(stderr=True).status("audit") as status:
        found = auditing.audit(
            ready,
            releases=samples,
            canaries=canaries,
            tell=lambda way, share: status.update(f"audit: {way}, {share:.0%}"),
        )
    if out is not None:
        text = json.dumps(found.as_json(), indent=2, ensure_ascii=False)
        try:
            atomic_write(out, text.encode() + b"\n")
        except OSError as error:
            raise RunError(f"cannot write {out}: {error.strerror}.") from error
    lines = [f"claimed: {found.guarantee}", *map(str, found.findings)]
    typer.echo(json_text(found.as_json()) if as_json else "\n\n".join(lines))
    if found.is_refuted:
        raise typer.Exit(1)
