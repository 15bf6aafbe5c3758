"""`cohortium run` and `resume`: start or resume a study, and observe it."""

from __future__ import annotations

import contextlib
import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import attrs
import typer

from cohortium.cli import _completion
from cohortium.cli._estimates import evaluation_rows, print_measured
from cohortium.cli._grid import run_grid, warn_ignored_keys
from cohortium.cli._options import Only, Overrides, RunFolder, Study, federation_of
from cohortium.cli._sign_with import SignWith, print_signer, read_key
from cohortium.cli._stopping import stop_on_signal
from cohortium.cli._streams import json_text
from cohortium.errors import CohortiumError, RequestError, RunError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cohortium.crypto.signing import SigningKey
    from cohortium.federation import Federation
    from cohortium.roles.protocols import Observer
    from cohortium.runs.result import Result

Observe = Annotated[
    list[str] | None,
    typer.Option(
        help="Observer of the run. Can be repeated.", autocompletion=_completion.observer_names
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print only the result.")]
Jobs = Annotated[int, typer.Option(help="Runs of a grid at a time.", min=1)]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="List a grid's runs, prepare each cell, and do none.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print result.json.")]


def run(
    study: Study = None,
    *,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the record; default runs/DATE-TIME, of a grid runs/NAME."),
    ] = None,
    only: Only = None,
    jobs: Jobs = 1,
    dry_run: DryRun = False,
    observer: Observe = None,
    sign_with: SignWith = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run a study, continue a grid, or run the quick start.

    The quick start, without a study, distributes made-up blood cells over ten simulated sites. It
    trains under differential privacy and secure aggregation.

    Examples:
      cohortium run
      cohortium run study.toml --out runs/first
      cohortium run study.toml --set privatizer.epsilon=3 --set model.width=16
      cohortium run study.toml --observer tensorboard --json > result.json
      cohortium run study.toml --sign-with lead.pem
      cohortium run grid.toml --only sites=10 --jobs 2
    """
    from cohortium import grid as grids

    is_quiet = quiet or as_json
    if study is not None and grids.is_grid(study):
        if sign_with is not None:
            raise RequestError("--sign-with is for one run; sign the runs of a grid with `sign`.")
        grid = grids.read(study, overrides or [])
        if not is_quiet:
            warn_ignored_keys(grid, only or [])
        run_grid(
            grid,
            out=out,
            only=only or [],
            jobs=jobs,
            dry_run=dry_run,
            observe=observer or [],
            own=_own_observers(is_quiet=is_quiet),
            as_json=as_json,
        )
        return
    if only or dry_run or jobs != 1:
        raise RequestError("--only, --jobs and --dry-run are for a study file with a [grid].")
    key = read_key(sign_with)
    federation = federation_of(study, overrides, is_quiet=is_quiet)
    federation, observers = _with_observers(federation, observer, is_quiet=is_quiet)
    folder = out or Path("runs") / dt.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    with _write_report_after(folder), stop_on_signal(folder) as stop:
        result = federation.run(folder, observers=observers, stop=stop, signing_key=key)
        _print_outcome(result, key, as_json=as_json)


def resume(
    folder: RunFolder,
    *,
    observer: Observe = None,
    sign_with: SignWith = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Resume a run that was stopped, killed or failed.

    It continues after the last completed round, with the study in the folder. A run that began
    with --sign-with needs the same key again.

    Examples:
      cohortium resume runs/first
    """
    from cohortium.federation import Federation
    from cohortium.runs.resume_command import deployment_engine, resume_command
    from cohortium.runs.run_directory import is_finished, study_path

    key = read_key(sign_with)
    federation = Federation.read(study_path(folder))
    if deployment_engine(folder) is not None and not is_finished(folder):
        raise RequestError(
            f"the run in {folder} is of a deployment, whose engine starts the coordinator; "
            f"continue it with {resume_command(folder)}."
        )
    watched, observers = _with_observers(federation, observer, is_quiet=quiet or as_json)
    with _write_report_after(folder), stop_on_signal(folder) as stop:
        result = watched.resume(folder, observers=observers, stop=stop, signing_key=key)
        _print_outcome(result, key, as_json=as_json)


def _own_observers(*, is_quiet: bool) -> list[str]:
    """Return the names of the command's own observers."""
    return [] if is_quiet else ["progress"]


def _with_observers(
    federation: Federation, wanted: list[str] | None, *, is_quiet: bool
) -> tuple[Federation, list[Observer]]:
    """Return the study with its observers, and the command's own observers.

    Quiet mode drops the progress display, even if the study asks for it. Requested observers become
    part of the study, so that a resumed run informs them again.
    """
    from cohortium.catalog import construction
    from cohortium.catalog.discovery import discover

    names = federation.observers
    if is_quiet:  # also if the study itself asks for it
        names = tuple(name for name in names if name != "progress")
    catalog = discover()
    for name in wanted or []:
        construction.build_part(catalog, "observer", {"name": name}, where="--observer")
    names = tuple(dict.fromkeys([*names, *(wanted or [])]))
    own = [
        construction.build_part(catalog, "observer", {"name": name}, where="the command")
        for name in _own_observers(is_quiet=is_quiet)
        if name not in names
    ]
    return attrs.evolve(federation, observers=names), own


@contextlib.contextmanager
def _write_report_after(folder: Path) -> Iterator[None]:
    """Write the report of the run in `folder` after the body.

    It is written even if the run failed.
    """
    from cohortium import reporting

    try:
        yield
    except RunError:
        with contextlib.suppress(CohortiumError):
            reporting.write([folder])
        raise
    reporting.write([folder])


def _print_outcome(result: Result, key: SigningKey | None, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json_text(result.as_json()))
        return
    if result.measured is not None:
        print_measured(result)
    else:
        _print_result(result)
    print_signer(key)


def _print_result(result: Result) -> None:
    rows = [
        *result.headline(),
        *evaluation_rows(result),
        ("guarantee", str(result.guarantee or "none: nothing here is private")),
        ("uploads", f"{result.max_upload_bytes:,} bytes per site and round at most"),
        ("time", f"{result.seconds.total:.1f} s"),
        ("weights", result.weights_sha256[:16]),
        ("record", str(result.folder)),
        ("report", str(result.folder / "report.html") if result.folder else "none"),
    ]
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        typer.echo(f"{label:>{max(width, 14)}}  {value}")
