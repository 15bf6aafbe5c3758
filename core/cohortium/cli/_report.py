"""`cohortium report`: the results of one or several runs on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cohortium.cli import _completion
from cohortium.cli._personal import warn_personal
from cohortium.errors import RequestError


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of runs.", metavar="DIR...", autocompletion=_completion.run_folders
        ),
    ],
    *,
    out: Annotated[
        Path | None, typer.Option(help="The file to write; for one run report.html in its folder.")
    ] = None,
) -> None:
    """Write one page about a run, or about several side by side.

    Neither the command nor the page needs a network. The page of an unfinished run covers the
    rounds so far. The page of an adapted model stays at its hospital.

    Examples:
      cohortium report runs/first
      cohortium report runs/first runs/second --out comparison.html
    """
    from cohortium import reporting
    from cohortium.reporting.personal_page import write_personal_page
    from cohortium.runs.personal_mark import is_personal

    marked = [folder for folder in folders if is_personal(folder)]
    if marked and len(folders) > 1:
        raise RequestError(
            f"{marked[0]} holds a personal model, which must not leave its hospital; give its page "
            "a command of its own."
        )
    if marked:
        target, personal = write_personal_page(marked[0], out)
        warn_personal(personal)
        typer.echo(str(target))
        return
    if out is None and len(folders) > 1:
        raise RequestError("several runs share no folder; say where the page goes with --out FILE.")
    typer.echo(str(reporting.write(folders, out)))
