"""The warning of every command that opens a personal model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from cohortium.text import sanitize

if TYPE_CHECKING:
    from cohortium.inference.personal import Personal


def warn_personal(personal: Personal | None) -> None:
    """Say on standard error that a model must not leave its hospital, if it is personal."""
    if personal is not None:
        typer.echo(sanitize(f"cohortium: {personal.notice}"), err=True)
