"""The `cohortium` command: thin; each command says what it wants of the floors below."""

from __future__ import annotations

import datetime as dt
import json
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from cohortium.cli._ledger import ledger
from cohortium.cli._promises import Settings, Study, audit, plan
from cohortium.cli._site import deal, site
from cohortium.errors import CohortiumError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cohortium.record import Result

INTERRUPTED = 130
"""The exit code after Ctrl-C, by the shells' custom."""

app = typer.Typer(
    name="cohortium",
    help="Privacy-preserving federated learning for medical imaging.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(*, wanted: bool) -> None:
    if wanted:
        from cohortium import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Options before the command."""


@app.command()
def run(
    study: Study = None,
    *,
    settings: Settings = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the record; default runs/DATE-TIME.")
    ] = None,
    observe: Annotated[
        list[str] | None, typer.Option(help="An observer to tell; may be repeated.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only the result.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print result.json.")] = False,
) -> None:
    """Run a study: by default ten simulated hospitals under DP and secure aggregation.

    Examples: `cohortium run`; `cohortium run study.toml --set privatizer.epsilon=3 --out try`.
    """
    from cohortium import composition
    from cohortium import study as studies
    from cohortium.catalog import discover

    federation = studies.read(study, settings or [])
    catalog = discover()
    names = ["events", *([] if quiet or as_json else ["progress"]), *(observe or [])]
    observers = [
        composition.make(catalog, "observer", {"name": name}, where="--observe")
        for name in dict.fromkeys(names)
        if name not in federation.observers
    ]
    folder = out or Path("runs") / dt.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    result = federation.run(folder, observers=observers)
    if as_json:
        typer.echo(json.dumps(result.as_json(), indent=2, ensure_ascii=False))
    else:
        _print_result(result)


def _print_result(result: Result) -> None:
    accuracy = "none (no test images)" if result.accuracy is None else f"{result.accuracy:.2%}"
    rows = [
        ("test accuracy", accuracy),
        ("guarantee", str(result.guarantee or "none: nothing here is private")),
        ("uploads", f"{result.upload_bytes_per_site_per_round:,} bytes per site and round at most"),
        ("time", f"{result.seconds.total:.1f} s"),
        ("weights", result.weights_sha256[:16]),
        ("record", str(result.folder)),
    ]
    for label, value in rows:
        typer.echo(f"{label:>14}  {value}")


@app.command()
def plugins(
    *, as_json: Annotated[bool, typer.Option("--json", help="Print records as JSON.")] = False
) -> None:
    """List every installed plugin; exit with 1 if any cannot be used."""
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


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="A plugin, or one thing that a plugin offers.")],
    *,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value, a parameter to make it with; may be repeated."),
    ] = None,
) -> None:
    """Hold a plugin to the contracts of its roles; exit with 1 if it breaks one.

    Examples: `cohortium check phantom --set examples=64`; `cohortium check npz --set path=my.npz`.
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


@app.command()
def keygen(
    site: Annotated[int, typer.Argument(help="The site's number in the federation.", min=0)],
    *,
    out: Annotated[Path, typer.Option(help="The new file for the private key.")] = Path(
        "identity.pem"
    ),
) -> None:
    """Make a site's signing key, and print its line for the directory of all sites.

    Example: `cohortium keygen 3 --out site-3.pem`.
    """
    from cohortium.identity import Identity, line_of
    from cohortium.randomness import Randomness

    identity = Identity.draw(Randomness.system())
    identity.create(out)
    typer.echo(line_of(site, identity.public))


app.command()(plan)
app.command()(audit)
app.command()(ledger)
app.command()(site)
app.command()(deal)


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script: a user's mistake is one sentence and an exit code, never a traceback."""
    try:
        app(args=arguments, standalone_mode=True)
    except CohortiumError as error:
        typer.echo(f"cohortium: {error}", err=True)
        sys.exit(error.exit_code)
    except Exception as error:  # noqa: BLE001 - told in full
        # Nothing that a user did wrong: whoever mends it needs the traceback, and whose it is.
        from cohortium.catalog import discover

        traceback.print_exc()
        owner = discover().owner(error)
        fault = "Cohortium, or of a library" if owner is None else f"the plugin {owner.label}"
        typer.echo(
            f"cohortium: that is a fault of {fault}; please report the lines above.", err=True
        )
        sys.exit(1)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            typer.echo("cohortium: stopped.", err=True)
        raise
