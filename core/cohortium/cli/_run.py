"""`cohortium run`: a study is run, and watched."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import attrs
import typer

from cohortium.cli import _completion
from cohortium.cli._grid import DryRun, Jobs, Only, run_grid
from cohortium.cli._options import Settings, Study
from cohortium.errors import CohortiumError, RunError, StudyError

if TYPE_CHECKING:
    from cohortium.record import Result


def run(
    study: Study = None,
    *,
    settings: Settings = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the record; default runs/DATE-TIME, of a grid runs/NAME."),
    ] = None,
    only: Only = None,
    jobs: Jobs = 1,
    dry_run: DryRun = False,
    observe: Annotated[
        list[str] | None,
        typer.Option(
            help="An observer to tell; may be repeated.", autocompletion=_completion.observer_names
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only the result.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print result.json.")] = False,
) -> None:
    """Run a study, or go on with a grid of them; without one, the quick start.

    The quick start deals made-up blood cells to ten simulated hospitals, and trains under
    differential privacy and secure aggregation.

    Examples:
      cohortium run
      cohortium run study.toml --out runs/first
      cohortium run study.toml --set privatizer.epsilon=3 --set model.width=16
      cohortium run grid.toml --only sites=10 --jobs 2
      cohortium run study.toml --observe tensorboard --json > result.json
    """
    from cohortium import composition, reporting
    from cohortium import grid as grids
    from cohortium import study as studies
    from cohortium.catalog import discover

    names = [*([] if quiet or as_json else ["progress"]), *(observe or [])]
    if study is not None and grids.is_grid(study):
        run_grid(
            study,
            settings=settings or [],
            out=out,
            only=only or [],
            jobs=jobs,
            dry_run=dry_run,
            observe=names,
            as_json=as_json,
        )
        return
    if only or dry_run or jobs != 1:
        raise StudyError("--only, --jobs and --dry-run are for a study file with a [grid].")
    federation = studies.read(study, settings or [])
    if quiet or as_json:  # also where the study itself asks for it
        kept = tuple(name for name in federation.observers if name != "progress")
        federation = attrs.evolve(federation, observers=kept)
    catalog = discover()
    observers = [
        composition.make(catalog, "observer", {"name": name}, where="--observe")
        for name in dict.fromkeys(names)
        if name not in federation.observers
    ]
    folder = out or Path("runs") / dt.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    try:
        result = federation.run(folder, observers=observers)
    except RunError:
        with contextlib.suppress(CohortiumError):
            reporting.write([folder])
        raise
    if as_json:
        typer.echo(json.dumps(result.as_json(), indent=2, ensure_ascii=False))
    else:
        _print_result(result)
    reporting.write([folder])


def _print_result(result: Result) -> None:
    accuracy = "none (no test images)" if result.accuracy is None else f"{result.accuracy:.2%}"
    rows = [
        ("test accuracy", accuracy),
        ("guarantee", str(result.guarantee or "none: nothing here is private")),
        ("uploads", f"{result.upload_bytes_per_site_per_round:,} bytes per site and round at most"),
        ("time", f"{result.seconds.total:.1f} s"),
        ("weights", result.weights_sha256[:16]),
        ("record", str(result.folder)),
        ("report", str(result.folder / "report.html") if result.folder else "none"),
    ]
    for label, value in rows:
        typer.echo(f"{label:>14}  {value}")
