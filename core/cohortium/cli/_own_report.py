"""`cohortium own-report`: a hospital's own exact figures, on a page that stays there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cohortium.cli._options import Overrides
from cohortium.data.scores import metric_name
from cohortium.text import sanitize

if TYPE_CHECKING:
    from cohortium.roles.protocols import Observer


def own_report(
    path: Annotated[Path, typer.Argument(help="The hospital's site file.")],
    *,
    out: Annotated[
        Path | None, typer.Option(help="The page; default own-report.html next to the ledger.")
    ] = None,
    session: Annotated[
        str, typer.Option(help="First letters of the evaluation's session; default the newest.")
    ] = "",
    result: Annotated[
        Path | None, typer.Option(help="A copy of the evaluation's released result.json.")
    ] = None,
    overrides: Overrides = None,
    training: Annotated[
        bool, typer.Option("--training/--no-training", help="Train a model alone, too.")
    ] = True,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only the result.")] = False,
) -> None:
    """Compare the federation's model with one that the hospital trains alone.

    Reads the exact scores that the site has stored, trains the study's model on the hospital's own
    images, and writes one page. Nothing is sent, and no ledger is charged.

    Examples:
      cohortium own-report site.toml
      cohortium own-report site.toml --set federation.rounds=20 --out gain.html
      cohortium own-report site.toml --no-training --result evaluation/result.json
    """
    from cohortium.deployment.own_report import own_figures
    from cohortium.deployment.site_config import SiteConfig
    from cohortium.reporting.own_page import Released, check_own_page, write_own_page

    site_config = SiteConfig.read(path)
    beside = (site_config.folder / site_config.ledger).parent
    page = beside / "own-report.html" if out is None else out
    check_own_page(page)
    found = own_figures(
        site_config,
        session=session,
        overrides=overrides or (),
        trains=training,
        released=None if result is None else Released.read(result),
        observers=[] if quiet else _progress(),
    )
    write_own_page(found, page)
    scores = found.federated.scores
    name = scores.main_metric
    rows = [(f"{metric_name(name)} of the federation's model", scores.metrics[name])]
    if found.alone is not None:
        rows.append(("of the model trained alone", found.alone.scores.metrics[name]))
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        typer.echo(f"{label:>{width}}  {'unknown' if value is None else f'{value:.2%}'}")
    if found.verdict:
        typer.echo(found.verdict.replace("’", "'"))
    typer.echo(sanitize(f"the page stays here: {page}"))


def _progress() -> list[Observer]:
    """Return the progress display, if it is installed."""
    from cohortium.catalog import construction
    from cohortium.catalog.discovery import discover

    catalog = discover()
    if "progress" not in catalog.names("observer"):
        return []
    return [construction.build_part(catalog, "observer", {"name": "progress"}, where="the command")]
