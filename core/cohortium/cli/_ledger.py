"""`cohortium ledger`: the privacy budget spent on a site's data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cohortium.cli import _printing
from cohortium.cli._streams import json_text
from cohortium.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cohortium.ledger.report import LedgerReport


def ledger(
    path: Annotated[Path, typer.Argument(help="A ledger, or a site file, which has a budget.")],
    *,
    data: Annotated[str | None, typer.Option(help="Show this data identity only.")] = None,
    delta: Annotated[
        float | None, typer.Option(help="δ at which ε is given; default the budget's, or 1e-5.")
    ] = None,
    create: Annotated[bool, typer.Option("--create", help="Make a new, empty ledger.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print as JSON; an ε without bound is null.")
    ] = False,
) -> None:
    """Show the privacy budget spent on a site's data.

    Prints each run and the total, against the budget in the site file.

    Examples:
      cohortium ledger site.toml
      cohortium ledger site.toml --create
      cohortium ledger runs/one/ledger.sqlite --delta 1e-6
    """
    from cohortium.deployment.site_config import SiteConfig
    from cohortium.ledger.ledger import Ledger
    from cohortium.ledger.report import build_reports, select_dataset
    from cohortium.privacy.guarantee import MIN_DELTA

    if delta is not None and not MIN_DELTA <= delta < 1:
        raise RequestError(f"--delta {delta:g}: δ lies between {MIN_DELTA:g} and 1.")
    site_config = SiteConfig.read(path) if path.suffix == ".toml" else None
    book = Ledger(path) if site_config is None else site_config.account.ledger
    if create:
        book.create()
    accounts = {} if site_config is None else site_config.accounts
    budgets = {name: each.budget for name, each in accounts.items() if each.budget}
    found = select_dataset(build_reports(book, budgets=budgets, delta=delta), data)
    if as_json:
        rows = [statement.as_json() for statement in found]
        typer.echo(json_text(rows, allow_nan=False))
    else:
        _print_statements(found)


def _print_statements(found: Sequence[LedgerReport]) -> None:
    from rich.table import Table

    from cohortium.ledger.report import describe_cost, format_epsilon

    console = _printing.console()
    for statement in found:
        table = Table("run", "last", "attempts", "each", "ε", box=None, pad_edge=False)
        for line in statement.runs:
            run, attempts = line.charges, f"{line.charges.attempts:,}"
            name = run.session.hex()[:8]
            table.add_row(
                name, run.last[:10], attempts, describe_cost(run.cost), format_epsilon(line.epsilon)
            )
        console.print(f"{statement}")
        if statement.runs:
            console.print(table)
    if not found:
        console.print("nothing has been spent")
