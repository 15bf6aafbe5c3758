"""`cohortium plugins` and `check`: what is installed, and whether it keeps its contract."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def plugins(
    *, as_json: Annotated[bool, typer.Option("--json", help="Print records as JSON.")] = False
) -> None:
    """List the installed plugins.

    Exits with 1 if any of them cannot be used, and says why.

    Examples:
      cohortium plugins
      cohortium plugins --json
    """
    from cohortium.catalog import discover

    catalog = discover()
    if as_json:
        from attrs import asdict

        rows = [
            {
                **asdict(record),
                "offers": [
                    {"role": o.role, "name": o.offer.name, "summary": o.offer.summary}
                    for o in catalog.offerings
                    if o.record == record
                ],
            }
            for record in catalog.records
        ]
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        table = Table("role", "name", "plugin", "", box=None, pad_edge=False)
        for o in sorted(catalog.offerings, key=lambda o: (o.role, o.offer.name)):
            table.add_row(o.role, o.offer.name, o.record.label, o.offer.summary)
        console = Console()
        console.print(table)
        for record in catalog.records:
            if record.status != "active":
                console.print(f"{record.label} is {record.status}: {record.reason}", markup=False)
    if any(record.status not in ("active", "blocked") for record in catalog.records):
        raise typer.Exit(1)


def check(
    name: Annotated[str, typer.Argument(help="A plugin, or one thing that a plugin offers.")],
    *,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value, a parameter to make it with; may be repeated."),
    ] = None,
) -> None:
    """Hold a plugin to its contract.

    Exits with 1 if it breaks a promise of one of its roles.

    Examples:
      cohortium check secagg
      cohortium check phantom --set examples=64
      cohortium check npz --set path=my.npz
    """
    from cohortium.catalog import discover
    from cohortium.testing import suite

    catalog, broken = discover(), False
    for offering in suite.select(catalog, name):
        instance = suite.instance_of(catalog, offering, settings or [])
        typer.echo(f"{offering.role} '{offering.offer.name}' of {offering.record.label}")
        for verdict in suite.examine(offering.role, instance):
            typer.echo(f"  {verdict}")
            broken |= bool(verdict.failure)
    if broken:
        raise typer.Exit(1)
