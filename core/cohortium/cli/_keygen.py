"""`cohortium keygen`: a site's signing key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def keygen(
    site: Annotated[int, typer.Argument(help="The site's number in the federation.", min=0)],
    *,
    out: Annotated[Path, typer.Option(help="The new file for the private key.")] = Path(
        "identity.pem"
    ),
) -> None:
    """Make a site's signing key.

    Prints the site's line for the directory that every party pins.

    Examples:
      cohortium keygen 3 --out site-3.pem
    """
    from cohortium.identity import Identity, line_of
    from cohortium.randomness import Randomness

    identity = Identity.draw(Randomness.system())
    identity.create(out)
    typer.echo(line_of(site, identity.public))
