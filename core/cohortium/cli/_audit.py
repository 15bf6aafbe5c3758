"""`cohortium audit`: tests of a guarantee by measurement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cohortium.cli._options import Overrides, Study, federation_of
from cohortium.cli._progress import show_progress
from cohortium.cli._streams import json_text
from cohortium.errors import RunError
from cohortium.storage.atomic import atomic_write
from cohortium.storage.writable import check_new_file


def audit(
    study: Study = None,
    *,
    overrides: Overrides = None,
    samples: Annotated[
        int, typer.Option(help="Noised sums in each of two worlds.", min=1000, max=10_000_000)
    ] = 20_000,
    canaries: Annotated[
        int,
        typer.Option(help="In one run; 0 chooses, and may leave the run out.", min=0, max=100_000),
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="A file for the findings as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Test a study's guarantee by measurement.

    Exits with 1 if the claim is refuted.

    Examples:
      cohortium audit study.toml
      cohortium audit --set privatizer.epsilon=1 --out findings.json
    """
    from cohortium import auditing

    if out is not None:
        check_new_file(out, remedy="give another file with --out")
    ready = federation_of(study, overrides, is_quiet=as_json).prepare()
    with show_progress("audit") as tell:
        found = auditing.audit(ready, releases=samples, canaries=canaries, tell=tell)
    if out is not None:
        text = json.dumps(found.as_json(), indent=2, ensure_ascii=False)
        try:
            atomic_write(out, text.encode() + b"\n")
        except OSError as error:
            raise RunError(f"cannot write {out}: {error.strerror}.") from error
    lines = [f"claimed: {found.guarantee}", *map(str, found.findings)]
    typer.echo(json_text(found.as_json()) if as_json else "\n\n".join(lines))
    if found.is_refuted:
        raise typer.Exit(1)
