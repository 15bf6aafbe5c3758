"""`cohortium data`: a page about a data set that stays on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cohortium.cli._options import Overrides
from cohortium.errors import RequestError
from cohortium.text import sanitize

if TYPE_CHECKING:
    from cohortium.deployment.site_config import SiteConfig
    from cohortium.reporting.data_page import DataFacts
    from cohortium.roles.protocols import Dataset
    from cohortium.study.study import Study

SHOWN = 20
"""Largest number of refused files that a command prints."""

DataPath = Annotated[
    Path | None,
    typer.Argument(
        metavar="[PATH]",
        help="A folder, an npz file, a table, or a study or site file; none: the quick start.",
    ),
]


def data(
    path: DataPath = None,
    *,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("data.html"),
) -> None:
    """Look at a data set before anything leaves.

    Writes one page that stays on this machine: counts, labels, intensities, refused files and
    sixteen images. For a study, it shows the partition of its simulation too. The exit code is 1
    if a run would refuse the data.

    Examples:
      cohortium data lesions/
      cohortium data chest.csv --set dataset.label=finding
      cohortium data scans.npz --set dataset.task=segmentation --out scans.html
      cohortium data study.toml
      cohortium data site.toml
    """
    from cohortium.reporting.data_page import check_page, write_page

    check_page(out)
    facts = _facts(path, overrides)
    write_page(facts, out)
    print_facts(facts, out)
    if not facts.is_usable:
        raise typer.Exit(1)


def _facts(path: Path | None, overrides: list[str] | None) -> DataFacts:
    """Return the content of a data set, or of both sets of a site file."""
    from cohortium.reporting.data_page import look

    if path is not None and _is_site_file(path):
        from cohortium.deployment.site_look import look_at_site

        return look_at_site(_site_config(path, overrides))
    dataset, study = dataset_of(path, overrides)
    return look(dataset, kind=kind_of(dataset), study=study)


def dataset_of(path: Path | None, overrides: list[str] | None) -> tuple[Dataset, Study | None]:
    """Return the data set of a path, with its study.

    Raises:
        CohortiumError: The path names no data set.
    """
    from cohortium.study import study_file
    from cohortium.study.study import Study

    if path is None or path.suffix.lower() == ".toml":
        if path is not None and _is_site_file(path):
            return _site_config(path, overrides).dataset, None
        study = study_file.read(path, overrides or (), into=Study)
        if study.dataset is None:
            raise RequestError(
                f"{path} names no [dataset]; give the file of a simulation, or a site file."
            )
        return study.dataset, study if study.data is None else None
    from cohortium.catalog.dataset_paths import build_dataset

    given: dict[str, object] = {}
    for setting in overrides or ():
        (table, values), *_ = study_file.parse_override(setting).items()
        if table != "dataset":
            raise RequestError(f"--set {setting}: {path} has no study; set keys of dataset alone.")
        given.update(values)
    return build_dataset(path, given), None


def _is_site_file(path: Path) -> bool:
    from cohortium.study import toml

    is_toml = path.suffix.lower() == ".toml"
    return is_toml and "site" in toml.read(path, what="the study or site file")


def _site_config(path: Path, overrides: list[str] | None) -> SiteConfig:
    from cohortium.deployment.site_config import SiteConfig

    if overrides:
        raise RequestError("--set is for studies and paths; change the keys of the site file.")
    return SiteConfig.read(path)


def kind_of(dataset: Dataset) -> str:
    """Return the name of a data set's plugin."""
    from cohortium.catalog.discovery import discover

    return discover().name_of("dataset", dataset) or type(dataset).__name__


def print_facts(facts: DataFacts, page: Path, *, is_private: bool = False) -> None:
    """Print the summary of a data set, with the reasons of refused files.

    Args:
        facts: The data set.
        page: The page about it.
        is_private: Whether the output may end in a log, so that only the page names files.
    """
    from cohortium.reporting.data_page import summary

    for label, value in (*summary(facts), ("page", str(page))):
        typer.echo(sanitize(f"{label:>14}  {value}"))
    for each in (facts,) if facts.test is None else (facts, facts.test):
        if not is_private:
            print_refused(each.survey.refused, each.survey.num_refused)
        # The sentence of a problem may name a file, and no other fault does.
        for fault in ("" if is_private else each.problem, *each.faults):
            if fault:
                typer.echo(sanitize(f"cohortium: {fault}"), err=True)


def print_refused(refused: tuple[str, ...], num_refused: int) -> None:
    """Print the first reasons of refused files, and the number of others."""
    for reason in refused[:SHOWN]:
        typer.echo(sanitize(f"refused: {reason}"), err=True)
    if num_refused > SHOWN:
        typer.echo(f"refused: {num_refused - SHOWN:,} files more.", err=True)
