"""The `cohortium` command, a thin layer over the library.

Each group of commands has a module. `GROUPS` is the order in which the help lists them.
"""

from __future__ import annotations

import sys
import traceback
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

import typer

from cohortium.cli._adapt import adapt
from cohortium.cli._approvals import approve, revoke, studies
from cohortium.cli._attack import attack
from cohortium.cli._audit import audit
from cohortium.cli._data import data
from cohortium.cli._evaluate import evaluate
from cohortium.cli._grid import compare
from cohortium.cli._help import Grouped, Worded, help_text
from cohortium.cli._init import init
from cohortium.cli._keygen import keygen
from cohortium.cli._ledger import ledger
from cohortium.cli._new_plugin import new_plugin
from cohortium.cli._own_report import own_report
from cohortium.cli._pack import pack
from cohortium.cli._plan import plan
from cohortium.cli._plugins import check, plugins
from cohortium.cli._report import report
from cohortium.cli._run import resume, run
from cohortium.cli._serve import serve
from cohortium.cli._sign import sign
from cohortium.cli._site import rehearse, site
from cohortium.cli._statistics import statistics
from cohortium.cli._streams import spell
from cohortium.cli._trail import trail
from cohortium.cli._tune import tune
from cohortium.cli._use import export, predict
from cohortium.cli._waiting import wait_passively
from cohortium.errors import CohortiumError
from cohortium.text import escape_control_characters, sanitize
from cohortium.third_party import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Sequence

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells define it."""

GROUPS = MappingProxyType(
    {
        "Study": (
            init,
            statistics,
            plan,
            run,
            resume,
            tune,
            evaluate,
            report,
            compare,
            audit,
            attack,
        ),
        "Data": (data, pack),
        "Model": (predict, export, sign, serve),
        "Hospital": (
            site,
            studies,
            approve,
            revoke,
            adapt,
            own_report,
            ledger,
            trail,
            keygen,
            rehearse,
        ),
        "Plugins": (plugins, check, new_plugin),
    }
)
"""Every command, under its heading in the help."""

app = typer.Typer(
    name="cohortium",
    cls=Grouped,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(*, wanted: bool) -> None:
    if wanted:
        from cohortium import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback(epilog="`cohortium COMMAND --help` has examples.")
def _root(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Privacy-preserving federated learning for medical imaging."""


for group, commands in GROUPS.items():
    for command in commands:
        app.command(cls=Worded, help=help_text(command), rich_help_panel=group)(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the console script.

    A user's mistake prints one sentence and sets an exit code. It never prints a traceback.
    """
    spell()
    wait_passively()
    try:
        app(args=arguments, standalone_mode=True)
    except CohortiumError as error:
        typer.echo(sanitize(f"cohortium: {error}"), err=True)
        sys.exit(error.exit_code)
    except Exception as error:  # noqa: BLE001 - printed in full
        if is_out_of_memory(error):
            reason = (str(error).strip().splitlines() or ["MemoryError"])[0].rstrip(".")
            typer.echo(
                "cohortium: there is not enough memory for this "
                f"({escape_control_characters(reason)}); ask for fewer or smaller images, sites or "
                "layers.",
                err=True,
            )
            sys.exit(1)
        # No user's mistake: its developer needs the traceback, and the name of the faulty package.
        from cohortium.catalog.discovery import discover

        typer.echo(sanitize(traceback.format_exc()), err=True)
        owner = discover().plugin_in_traceback(error)
        fault = "Cohortium, or of a library" if owner is None else f"the plugin {owner.label}"
        typer.echo(
            f"cohortium: that is a fault of {fault}; please report the lines above.", err=True
        )
        sys.exit(1)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            typer.echo("cohortium: stopped.", err=True)
        raise
