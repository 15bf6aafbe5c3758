"""`cohortium new-plugin`: a package from which to start a plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cohortium.cli import _completion
from cohortium.roles import ROLES


def new_plugin(
    name: Annotated[str, typer.Argument(help="Name of the plugin in a study, such as my-model.")],
    *,
    role: Annotated[
        str,
        typer.Option(
            help=f"Role of the plugin: {', '.join(ROLES)}.", autocompletion=_completion.roles
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder that the package's own is made in.")] = Path(),
) -> None:
    """Write a package from which to start a plugin.

    The package installs, is found, and passes its check and its own tests at once.

    Examples:
      cohortium new-plugin my-model --role model
      cohortium new-plugin my-table --role observer --out ~/plugins
    """
    from cohortium import scaffold
    from cohortium.catalog.discovery import discover

    folder = scaffold.plan(name, role, discover()).write(out)
    typer.echo(f"wrote {folder}; now, in that folder:")
    typer.echo("  pip install -e '.[dev]'")
    typer.echo(f"  cohortium check {name}")
    typer.echo("  pytest")
