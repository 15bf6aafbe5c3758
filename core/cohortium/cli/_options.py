"""Arguments and options that several commands share, and how a study is read of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cohortium.cli import _completion
from cohortium.text import sanitize

if TYPE_CHECKING:
    from cohortium.federation import Federation

Study = Annotated[Path | None, typer.Argument(help="A study file; none: the quick start.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="table.key=value, over the study; may be repeated.",
        autocompletion=_completion.overrides,
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option(help="Of a grid, axis=choice alone, or seed=1; may be repeated."),
]
RunFolder = Annotated[
    Path,
    typer.Argument(
        metavar="DIR",
        help="The folder of a run's record.",
        autocompletion=_completion.run_folders,
    ),
]


def federation_of(
    study: Path | None, overrides: list[str] | None, *, is_quiet: bool = False
) -> Federation:
    """The study that a command is given; see `Federation.read`.

    Args:
        study: The argument `Study`.
        overrides: The option `Overrides`.
        is_quiet: Say nothing of what they leave out of the file.

    Raises:
        CohortiumError: It is none.
    """
    from cohortium.federation import Federation

    federation = Federation.read(study, overrides or [])
    if not is_quiet:
        warn_ignored_keys(study, overrides)
    return federation


def warn_ignored_keys(study: Path | None, overrides: list[str] | None) -> None:
    """Say which keys of the study's file the settings leave out, a sentence for each setting."""
    from cohortium.study import study_file as studies

    for sentence in studies.ignored_keys(study, overrides or []):
        typer.echo(sanitize(sentence), err=True)
