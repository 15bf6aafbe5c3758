"""Arguments and options that several commands share.

Commands read their study from them.
"""

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
    """Return the study that a command's arguments describe, as `Federation.read` does.

    Args:
        study: The argument `Study`.
        overrides: The option `Overrides`.
        is_quiet: Whether to print nothing about ignored keys of the file.

    Raises:
        CohortiumError: They describe no valid study.
    """
    from cohortium.federation import Federation

    federation = Federation.read(study, overrides or [])
    if not is_quiet:
        warn_ignored_keys(study, overrides)
    return federation


def warn_ignored_keys(study: Path | None, overrides: list[str] | None) -> None:
    """Print the keys of the study's file that each setting leaves out."""
    from cohortium.study import study_file as studies

    for sentence in studies.ignored_keys(study, overrides or []):
        typer.echo(sanitize(sentence), err=True)


PartiesFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="The addresses of the parties that compute on secret shares, as TOML."
    ),
]

SpuPython = Annotated[
    Path | None,
    typer.Option(metavar="PYTHON", help="The Python that has spu, for --parties; default this."),
]
