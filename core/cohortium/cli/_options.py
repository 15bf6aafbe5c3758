"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cohortium.cli import _completion

Study = Annotated[Path | None, typer.Argument(help="A study file; none: the quick start.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="table.key=value, over the study; may be repeated.",
        autocompletion=_completion.settings,
    ),
]
RunFolder = Annotated[
    Path,
    typer.Argument(
        metavar="DIR",
        help="The folder of a run's record.",
        autocompletion=_completion.run_folders,
    ),
]
