"""Reading of a study file with a table `[tune]`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from cohortium import grid
from cohortium.catalog import construction
from cohortium.catalog.discovery import discover
from cohortium.errors import StudyError
from cohortium.grid.reading import build
from cohortium.grid.shared_models import with_shared_models
from cohortium.study import toml
from cohortium.text import quote_key
from cohortium.tuning.settings import Tuning

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cohortium.federation import Federation
    from cohortium.grid import Grid
    from cohortium.study.layered_tables import Tables

TUNE = "tune"

RESERVED = ("seeds", "images", "override", "exclude")
"""Keys of a `[grid]` that a search does not have."""


def has_tuning(path: Path) -> bool:
    """Return whether the file has a `[tune]`.

    Raises:
        RequestError: The file cannot be read.
        StudyError: The file is not valid TOML.
    """
    return TUNE in toml.read(path, what="the study")


def read(
    path: Path, overrides: Sequence[str] = (), *, share: float | None = None
) -> tuple[Federation, Tuning]:
    """Return the study that a file describes, and its search.

    Args:
        path: A study file with a `[tune]`.
        overrides: Changes to the study as `table.key=value`, for all candidates.
        share: Share of ε in place of that of the file.

    Raises:
        RequestError: The file cannot be read.
        StudyError: The study or the search is not valid.
        PluginError: The file names a plugin that cannot be used.
    """
    tables = toml.read(path, what="the study")
    where = f"{path} [{TUNE}]"
    if grid.is_grid(path):
        raise StudyError(f"{path} has a [grid] and a [tune]; a search is of one study.")
    table = tables.pop(TUNE, None)
    if not isinstance(table, dict):
        raise StudyError(
            f"{path} has no table [tune]; name the rounds of a candidate in it, and the values of "
            'each key that is searched, as in "trainer.learning_rate" = [0.01, 0.05].'
        )
    known = {f.name for f in attrs.fields(Tuning)} - {"studies"}
    terms = {key: value for key, value in table.items() if key in known}
    if share is not None:
        terms["share"] = share
    axes = {key: value for key, value in table.items() if key not in known}
    for key, value in axes.items():
        if key in RESERVED or not isinstance(value, list | dict):
            names = ", ".join(sorted(known))
            raise StudyError(
                f"{where} {quote_key(key)}: a search has the keys {names}, and lists of values by "
                "the key that is searched."
            )
    if not axes:
        raise StudyError(
            f"{where}: name the values of at least one key, as in "
            '"trainer.learning_rate" = [0.01, 0.05].'
        )
    base, catalog = _build(path, tables, {}, overrides), discover()
    found = _build(path, tables, axes, overrides)
    found.require_distinct(catalog)
    (own,) = base.cells()
    seed = own.tables["federation"]["seed"]
    cells = (own, *found.cells())
    built = with_shared_models(cell.federation(seed, catalog) for cell in cells)
    federation, *candidates = built
    studies = {cell.name: study for cell, study in zip(cells[1:], candidates, strict=True)}
    tuning: Tuning = construction.construct(
        Tuning, terms, where=where, what="the search", ready={"studies": studies}
    )
    return federation, tuning


def ignored_keys(path: Path, overrides: Sequence[str]) -> tuple[str, ...]:
    """Return a sentence for each setting of the command line that leaves out another one."""
    tables = toml.read(path, what="the study")
    plain = {name: table for name, table in tables.items() if name != TUNE}
    found = _build(path, plain, {}, overrides)
    told = [sentence for cell in found.cells() for sentence in cell.ignored_keys]
    return tuple(dict.fromkeys([*found.ignored_keys, *told]))


def _build(path: Path, tables: Tables, axes: dict[str, Any], overrides: Sequence[str]) -> Grid:
    return build(path, tables, axes, overrides, heading=f"[{TUNE}]", has_seeds=False)
