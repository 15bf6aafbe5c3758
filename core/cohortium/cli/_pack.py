"""`cohortium pack`: a data set as one file that is mapped instead of read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cohortium.cli._data import dataset_of, kind_of, print_refused
from cohortium.cli._options import Overrides
from cohortium.errors import DataError, RequestError
from cohortium.text import sanitize

if TYPE_CHECKING:
    from cohortium.data.splits import Splits


def pack(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="A folder, an npz file, a table, or a study or site file."
        ),
    ],
    *,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The new store, which ends in .npz.")
    ] = None,
    skip_refused: Annotated[
        bool, typer.Option("--skip-refused", help="Leave out files that cannot be read.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Compare the store PATH with its digest.")
    ] = False,
) -> None:
    """Convert a data set once into one file for fast reading.

    A run maps the file, the store, and gives the same weights as on the original.
    Prints the table [dataset] with which a study reads it.

    Examples:
      cohortium pack chest.csv --set dataset.label=finding -o chest.npz
      cohortium pack site.toml -o store.npz --skip-refused
      cohortium pack chest.npz --check
    """
    from cohortium.data.packed import compute_digest, stored_digest

    if check:
        if compute_digest(path) != (expected := stored_digest(path)):
            typer.echo(f"cohortium: {path} has changed since it was packed.", err=True)
            raise typer.Exit(1)
        typer.echo(sanitize(f"{path} is as it was packed: {expected}"))
        return
    if out is None or out.suffix.lower() != ".npz":
        raise RequestError("name the new store, which ends in .npz, with -o.")
    _pack(path, overrides, out, skip_refused=skip_refused)


def _pack(path: Path, overrides: list[str] | None, out: Path, *, skip_refused: bool) -> None:
    from cohortium.data.doubts import doubts
    from cohortium.data.packed import write_store
    from cohortium.data.survey import DataSurvey, load_readable
    from cohortium.storage.writable import check_new_file

    check_new_file(out, remedy="name another file with -o")
    dataset, _ = dataset_of(path, overrides)
    is_declared = path.suffix.lower() == ".toml" or any(
        "window" in each for each in overrides or ()
    )
    if getattr(dataset, "window", None) == "file" and not is_declared:
        raise RequestError(
            "a store keeps what the window of each image leaves; declare it with --set "
            "dataset.window={center=40,width=400}, or --set dataset.window=file for each file's "
            "own."
        )
    survey = DataSurvey()
    try:
        splits = load_readable(dataset, survey)
    except DataError:
        print_refused(survey.refused, survey.num_refused)
        raise
    print_refused(survey.refused, survey.num_refused)
    if survey.num_refused and not skip_refused:
        raise DataError(
            f"{survey.num_refused:,} files of {kind_of(dataset)} cannot be read, so nothing is "
            "packed; correct them, or leave them out with --skip-refused."
        )
    digest = write_store(splits, out)
    parts = [splits.train, splits.validation, splits.test]
    rows = [
        ("images", f"{sum(len(part) for part in parts if part is not None):,}"),
        ("left out", f"{survey.num_refused:,}"),
        ("store", f"{out}, {out.stat().st_size:,} bytes"),
        ("sha256", digest),
        *(("warning", doubt) for doubt in doubts(splits)),
    ]
    for label, value in rows:
        typer.echo(sanitize(f"{label:>14}  {value}"))
    typer.echo(_table(splits, out))


def _table(splits: Splits, out: Path) -> str:
    """Return the table of a study that reads the store."""
    import tomli_w

    from cohortium.catalog.discovery import discover
    from cohortium.catalog.toml_tables import to_table
    from cohortium.data.multiclass import Multiclass

    table: dict[str, object] = {"name": "npz", "path": str(out), "title": splits.name}
    if not isinstance(splits.task, Multiclass):
        task = to_table(discover(), "task", splits.task)
        task.pop("names", None)  # the store has them
        table["task"] = task
    return "\n" + tomli_w.dumps({"dataset": table}).rstrip()
