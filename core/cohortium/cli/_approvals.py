"""`cohortium studies`, `approve` and `revoke`: a person's decision about a study at a site."""

from __future__ import annotations

import contextlib
import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cohortium.cli import _printing
from cohortium.cli._streams import json_text
from cohortium.errors import RequestError
from cohortium.text import sanitize

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cohortium.deployment.approvals import ApprovalStore
    from cohortium.deployment.site_config import SiteConfig
    from cohortium.deployment.study_record import StudyRecord
    from cohortium.reporting.study_page import StudyOutlook

SiteFile = Annotated[Path, typer.Argument(help="The hospital's site file.")]
Digest = Annotated[
    str, typer.Argument(metavar="DIGEST", help="First digits of the study's digest.")
]
By = Annotated[str, typer.Option(help="Name of the person who decides.")]


def studies(
    path: SiteFile,
    digest: Annotated[
        str, typer.Argument(metavar="DIGEST", help="First digits of one; none: list all.")
    ] = "",
    *,
    page: Annotated[
        Path | None,
        typer.Option(help="The study's page; default study-DIGEST.html next to the ledger."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List the studies that a hospital was asked for, or show one.

    For one study it writes a page in plain words: what would leave, what it costs now and after,
    and who can learn what. The page stays on this machine.

    Examples:
      cohortium studies site.toml
      cohortium studies site.toml 3f2a90bc
    """
    from cohortium.deployment.study_outlook import study_outlook
    from cohortium.reporting.study_page import check_study_page, write_study_page

    if page is not None and not digest:
        raise RequestError("--page is the page of one study; give its digest, too.")
    with _store(path) as (site_config, store):
        if not digest:
            _list(store.studies(), as_json=as_json)
            return
        record = store.find(digest)
    beside = (site_config.folder / site_config.ledger).parent
    out = beside / f"study-{record.digest[:12]}.html" if page is None else page
    check_study_page(out)
    outlook = study_outlook(record, site_config, path)
    write_study_page(outlook, out)
    if as_json:
        typer.echo(json_text(_as_json(record) | {"page": str(out)}, allow_nan=False))
        return
    _show(outlook)
    typer.echo(sanitize(f"the page stays here: {out}"))


def approve(
    path: SiteFile,
    digest: Digest,
    *,
    until: Annotated[
        dt.datetime,
        typer.Option(formats=["%Y-%m-%d"], help="Last day of the approval, UTC."),
    ],
    by: By,
    runs: Annotated[int, typer.Option(help="Number of runs that it covers.")] = 1,
) -> None:
    """Approve a study that waits at a hospital.

    The approval is for these very bytes of the study, until the end of a day, and for a number of
    runs. Each run charges the ledger.

    Examples:
      cohortium approve site.toml 3f2a90bc --until 2027-03-31 --by "Dr. A. Meyer"
    """
    with _store(path) as (_, store):
        record = store.approve(digest, by=by, until=until.date(), runs=runs)
    many = "one run" if runs == 1 else f"{runs} runs"
    typer.echo(f"{record.digest[:12]} is approved for {many} until {until.date()}, UTC")
    typer.echo(f"its whole digest is {record.digest}")


def revoke(path: SiteFile, digest: Digest, *, by: By) -> None:
    """Revoke the approval of a study, or decline one that waits.

    A run under way ends here before its next release. The others may continue without this
    hospital. The ledger keeps what was charged.

    Examples:
      cohortium revoke site.toml 3f2a90bc --by "Dr. A. Meyer"
    """
    with _store(path) as (_, store):
        record = store.revoke(digest, by=by)
    typer.echo(f"{record.digest[:12]} is revoked, and nothing more of it leaves")


@contextlib.contextmanager
def _store(path: Path) -> Iterator[tuple[SiteConfig, ApprovalStore]]:
    from cohortium.deployment.site_config import SiteConfig

    site_config = SiteConfig.read(path)
    if not site_config.policy.approve:
        raise RequestError(
            f"{path} asks for no approval of studies; set approve = true under [policy]."
        )
    trail = site_config.open_trail()
    try:
        store = site_config.approvals(trail)
        assert store is not None, "the policy demands approval"
        yield site_config, store
    finally:
        trail.close()


def _list(found: list[StudyRecord], *, as_json: bool) -> None:
    from rich.table import Table

    if as_json:
        typer.echo(json_text([_as_json(record) for record in found], allow_nan=False))
        return
    console = _printing.console()
    if not found:
        console.print("no study was asked for")
        return
    table = Table("study", "state", "asked", "images", "until", "by", box=None, pad_edge=False)
    for record in found:
        approval = record.approval
        table.add_row(
            record.digest[:12],
            record.status,
            f"{record.last_asked:%Y-%m-%d}",
            sanitize(f"{record.facts.data} ({record.facts.use})"),
            "" if approval is None else str(approval.until),
            "" if approval is None else sanitize(approval.by),
        )
    console.print(table)


def _show(outlook: StudyOutlook) -> None:
    charge, inputs = outlook.charge, outlook.inputs
    budget = f", of a budget of {charge.budget}" if charge.budget else ""
    rows = [
        ("study", f"{outlook.digest}, {outlook.status}"),
        ("leaves", outlook.release.sentences(inputs.guarantee, inputs.aggregation)[0]),
        ("now", f"ε = {charge.now} at δ = {charge.delta:g} for {charge.scope}"),
        ("after a run", f"ε = {charge.after[0]}{budget}"),
    ]
    width = max(len(label) for label, _ in rows)
    for label, text in rows:
        typer.echo(sanitize(f"{label:>{width}}  {text}"))


def _as_json(record: StudyRecord) -> dict[str, object]:
    approval = record.approval
    return {
        "digest": record.digest,
        "state": record.state,
        "first_asked": record.first_asked.isoformat(),
        "last_asked": record.last_asked.isoformat(),
        "data": record.facts.data,
        "use": record.facts.use,
        "approval": None
        if approval is None
        else {
            "by": approval.by,
            "made": approval.made.isoformat(),
            "until": approval.until.isoformat(),
            "runs": approval.runs,
            "begun": len(approval.sessions),
        },
    }
