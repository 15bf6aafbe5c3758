"""The option `--sign-with`: the key with which a command signs the result that it writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cohortium.crypto.signing import SigningKey

SignWith = Annotated[
    Path | None,
    typer.Option(help="The coordinator's key, of `keygen`, which signs the result at the end."),
]


def read_key(path: Path | None) -> SigningKey | None:
    """Return the key at `path`, before anything else is read or spent."""
    from cohortium.crypto.signing import SigningKey

    return None if path is None else SigningKey.read(path)


def print_signer(key: SigningKey | None) -> None:
    """Print whose key has signed the result, if any."""
    if key is not None:
        typer.echo(f"{'signed':>14}  with the coordinator's key {key.public.hex()[:16]}…")
