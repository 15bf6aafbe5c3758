"""`cohortium plugins` and `check`: the installed plugins, and tests of their contracts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from attrs import asdict

from cohortium.cli import _completion, _printing
from cohortium.cli._streams import json_text
from cohortium.errors import PluginError
from cohortium.text import sanitize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cohortium.catalog.discovery import Catalog, CatalogEntry
    from cohortium.catalog.parameters import Parameter

TERMS_TABLE = "federation"
"""The table of a study that belongs to no plugin."""


def plugins(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Details of a plugin, of an offered name, or of [federation].",
            autocompletion=_completion.plugin_names,
        ),
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print records as JSON.")] = False,
) -> None:
    """List the installed plugins, one's parameters, or the keys of [federation].

    Exits with 1 if any of them cannot be used, and prints the reason.

    Examples:
      cohortium plugins
      cohortium plugins gaussian
      cohortium plugins federation
      cohortium plugins --json
    """
    from cohortium.catalog.discovery import discover
    from cohortium.testing import suite

    if name == TERMS_TABLE:
        _print_terms(as_json=as_json)
        return
    catalog = discover()
    if name is not None:
        found = suite.select(catalog, name)
        if as_json:
            _print_json([_described(offering) for offering in found])
        else:
            for offering in found:
                _print_details(offering)
        return
    if as_json:
        rows = [
            {
                **asdict(record),
                "offers": [_described(o) for o in catalog.entries if o.record == record],
            }
            for record in catalog.records
        ]
        _print_json(rows)
    else:
        _print_catalog(catalog)
    if any(record.status not in ("active", "blocked") for record in catalog.records):
        raise typer.Exit(1)


def _print_catalog(catalog: Catalog) -> None:
    from rich.table import Table

    table = Table("role", "name", "plugin", "", box=None, pad_edge=False)
    for o in sorted(catalog.entries, key=lambda o: (o.role, o.offer.name)):
        table.add_row(o.role, o.offer.name, o.record.label, o.offer.summary)
    console = _printing.console()
    console.print(table)
    for record in catalog.records:
        if record.status != "active":
            console.print(f"{record.label} is {record.status}: {record.reason}")


def _described(offering: CatalogEntry) -> dict[str, Any]:
    """Return an offer and its parameters as plain values.

    Parameters that cannot be read are left out, because that is the plugin's fault.
    """
    from cohortium.catalog.parameters import parameters_of

    offer = offering.offer
    try:
        parameters = [asdict(parameter) for parameter in parameters_of(offer)]
    except PluginError:
        parameters = []
    return {
        "role": offering.role,
        "name": offer.name,
        "summary": offer.summary,
        "parameters": parameters,
    }


def _print_details(offering: CatalogEntry) -> None:
    from cohortium.catalog.parameters import explanation_of, parameters_of

    console, offer = _printing.console(), offering.offer
    told = f"{offering.role} '{offer.name}' of {offering.record.label}: {offer.summary}"
    console.print(told)
    if explanation := explanation_of(offer):
        console.print(f"\n{explanation}\n", soft_wrap=True)
    parameters = parameters_of(offer)
    if parameters:
        _print_parameters(parameters)
    else:
        console.print("  no parameters")


def _print_terms(*, as_json: bool) -> None:
    """Print the keys of a study's [federation]."""
    from cohortium.catalog.parameters import parameters_of
    from cohortium.roles.hooks import Offer
    from cohortium.study.study import FEDERATION_KEYS, Study

    summary = "The terms on which the parts of a study meet."
    known = parameters_of(Offer(TERMS_TABLE, Study, summary))
    terms = tuple(parameter for parameter in known if parameter.name in FEDERATION_KEYS)
    if as_json:
        parameters = [asdict(parameter) for parameter in terms]
        _print_json([{"name": TERMS_TABLE, "summary": summary, "parameters": parameters}])
        return
    _printing.console().print(f"[{TERMS_TABLE}] of a study: {summary}")
    _print_parameters(terms)


def _print_parameters(parameters: Sequence[Parameter]) -> None:
    from rich.table import Table

    table = Table("", "parameter", "type", "default", "", box=None, pad_edge=False)
    for p in parameters:
        table.add_row("", p.name, p.type, p.default or "(required)", p.meaning)
    _printing.console().print(table)


def _print_json(rows: list[dict[str, Any]]) -> None:
    typer.echo(json_text(rows))


def check(
    name: Annotated[
        str,
        typer.Argument(
            help="A plugin, or one thing that a plugin offers.",
            autocompletion=_completion.plugin_names,
        ),
    ],
    *,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value, a parameter to make it with; may be repeated."),
    ] = None,
) -> None:
    """Check a plugin against its contract.

    Exits with 1 if it breaks the contract of one of its roles.

    Examples:
      cohortium check secagg
      cohortium check phantom --set examples=64
      cohortium check npz --set path=my.npz
    """
    from cohortium.catalog.discovery import discover
    from cohortium.testing import suite

    catalog, broken = discover(), False
    found = suite.select(catalog, name)
    for offering in found:
        heading = f"{offering.role} '{offering.offer.name}' of {offering.record.label}"
        try:
            instance = suite.instance_of(catalog, offering, overrides or [])
        except PluginError as error:
            if len(found) == 1:
                raise
            # The other parts of the plugin are checked in any case.
            typer.echo(sanitize(f"{heading}\n  ✗ {error}"))
            broken = True
            continue
        typer.echo(heading)
        for verdict in suite.run_checks(offering.role, instance):
            typer.echo(f"  {verdict}")
            broken |= bool(verdict.failure)
    if broken:
        raise typer.Exit(1)
