"""`cohortium keygen`: a site's signing key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cohortium.errors import RequestError


def keygen(
    site: Annotated[
        int | None,
        typer.Argument(
            help="The site's id in the federation. None for a coordinator's key.",
            min=0,
            metavar="SITE_ID",
        ),
    ] = None,
    *,
    out: Annotated[
        Path | None, typer.Option(help="The new file for the private key; default identity.pem.")
    ] = None,
    public: Annotated[
        Path | None, typer.Option(help="A key that is there; none is made.", metavar="FILE")
    ] = None,
) -> None:
    """Create a signing key, or print the public half of one.

    Prints the site's line for the directory that every party pins. Without a site, the key is a
    coordinator's. No directory has it, so it prints the digits that others compare.

    Examples:
      cohortium keygen 3 --out site-3.pem
      cohortium keygen 3 --public site-3.pem
      cohortium keygen --out lead.pem
    """
    from cohortium.crypto.randomness import Randomness
    from cohortium.crypto.signing import SigningKey, directory_line

    if public is not None:
        if out is not None:
            raise RequestError(
                "--public makes no key, so that --out has nothing to take; leave it out."
            )
        identity = SigningKey.read(public)
    else:
        identity = SigningKey.generate(Randomness.system())
        identity.create(out or Path("identity.pem"))
    if site is None:
        typer.echo(f"coordinator ed25519 {identity.public.hex()}")
    else:
        typer.echo(directory_line(site, identity.public))
