"""Reading and validation of a grid file."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from cohortium.errors import StudyError
from cohortium.grid.cells import Axis, Choice, Grid, Override
from cohortium.study import study_file, toml
from cohortium.study.layered_tables import merge
from cohortium.text import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from cohortium.study.layered_tables import Layer, Tables

MAX_RUNS = 10_000
"""Most runs of one grid. With more, a list of values was surely mistyped."""

COLUMNS = ("seed", "seeds", "data_set", "images", "accuracy", "auc", "seconds")
"""Names that already have another meaning in a table."""


SEED_KEY = "federation.seed"
"""The key that a grid's `seeds` set."""


def is_grid(path: Path) -> bool:
    """Return whether the file has a `[grid]`.

    Raises:
        RequestError: The file cannot be read.
        StudyError: The file is not valid TOML.
    """
    return "grid" in toml.read(path, what="the study")


def read(path: Path, overrides: Sequence[str] = ()) -> Grid:
    """Return the grid that a file describes.

    Args:
        path: A study file with a `[grid]`.
        overrides: Changes to the study as `table.key=value`, for all cells.

    Raises:
        RequestError: The file cannot be read.
        StudyError: The grid is invalid. Or a setting changes a key that
            the grid varies.
    """
    tables = toml.read(path, what="the study")
    return build(path, tables, tables.pop("grid", {}), overrides)


def build(
    path: Path,
    tables: Tables,
    table: object,
    overrides: Sequence[str] = (),
    *,
    heading: str = "[grid]",
    has_seeds: bool = True,
) -> Grid:
    """Return the grid of a study's tables and of a table of axes.

    Args:
        path: The file of both.
        tables: Tables of the study.
        table: The table of axes.
        overrides: Changes to the study as `table.key=value`, for all cells.
        heading: Name of the table of axes in an error.
        has_seeds: Whether the seeds are those of the table, so that no override sets another.

    Raises:
        StudyError: As for `read`.
    """
    where, place = str(path), f"{path} {heading}"
    if not isinstance(table, dict):
        raise StudyError(f"{place} must be a table.")
    table = dict(table)
    base = merge(study_file.quick_start(), tables, where=where)
    told = []
    if "seeds" in table and "seed" in tables.get("federation", {}):
        told.append(f"{place}: its seeds take the place of {SEED_KEY}.")
    seeds = _seeds(table.pop("seeds", None), tables, where=place)
    images = table.pop("images", "test")
    if images not in ("test", "validation"):
        raise StudyError(f'{place} images must be "test" or "validation", not {images!r}.')
    if "where" in table:
        raise StudyError(f"{where} [[grid.where]]: {did_you_mean('where', ['override'])}")
    exclude, where_cells = table.pop("exclude", []), table.pop("override", [])
    axes = _axes(table, where=place)
    joint = _joint(where_cells, axes, where=f"{where} [{heading[:-1]}.override]]")
    count = len(seeds) * math.prod(len(axis.choices) for axis in axes)
    if count > MAX_RUNS:
        raise StudyError(f"{place} makes {count} runs, more than {MAX_RUNS}; shorten it.")
    layers, replaced = study_file.override_layers(overrides)
    _require_not_varied(layers, axes, joint, where=place, has_seeds=has_seeds)
    return Grid(
        name=path.stem,
        axes=axes,
        seeds=seeds,
        images=images,
        exclude=_places(exclude, axes, where=f"{place} exclude"),
        overrides=joint,
        cli_overrides=layers,
        base=base,
        written=tables,
        where=where,
        heading=heading,
        folder=path.absolute().parent,
        ignored_keys=(*told, *replaced),
    )


def _require_not_varied(
    layers: Sequence[Layer],
    axes: Sequence[Axis],
    joint: Sequence[Override],
    *,
    where: str,
    has_seeds: bool,
) -> None:
    """Refuse settings of keys that the grid varies.

    Also refuse a grid that varies its own seed.
    """
    setters = [choice for axis in axes for choice in axis.choices] + list(joint)
    varied = {key for setter in setters for key in _keys(setter.changes)}
    if SEED_KEY in varied:
        raise StudyError(
            f"{where}: a choice sets {SEED_KEY}, which 'seeds' of a grid gives; take it out there."
        )
    for layer in layers:
        if twice := _keys(layer.changes) & (varied | ({SEED_KEY} if has_seeds else set())):
            name = "the grid" if has_seeds else where
            how = "choose with --only" if has_seeds else "change its values there"
            raise StudyError(f"{layer.where}: {name} varies {twice.pop()}; {how} instead.")


def _seeds(value: Any, tables: Tables, *, where: str) -> tuple[int, ...]:
    if value is None:
        value = [tables.get("federation", {}).get("seed", 1)]
    is_list = isinstance(value, list) and all(type(seed) is int and seed >= 0 for seed in value)
    if not is_list or not value or len(set(value)) != len(value):
        raise StudyError(
            f"{where} seeds must be a list of different whole numbers, such as [1, 2, 3]."
        )
    return tuple(value)


def _places(value: Any, axes: Sequence[Axis], *, where: str) -> tuple[Mapping[str, str], ...]:
    """Return combinations as labels on some of the axes."""
    known = {axis.name: {choice.label for choice in axis.choices} for axis in axes}
    if not isinstance(value, list) or not all(isinstance(each, dict) and each for each in value):
        raise StudyError(f'{where} must be a list of tables such as {{ privacy = "on" }}.')
    for each in value:
        for axis, label in each.items():
            if _label(_text(label)) not in known.get(axis, ()):
                raise StudyError(f"{where}: there is no {axis} = {_text(label)}.")
    return tuple({axis: _label(_text(label)) for axis, label in each.items()} for each in value)


def _joint(value: Any, axes: Sequence[Axis], *, where: str) -> tuple[Override, ...]:
    for each in value if isinstance(value, list) else ():
        if isinstance(each, dict) and "cells" in each:
            raise StudyError(f"{where} cells: {did_you_mean('cells', ['match'])}")
    is_list = isinstance(value, list) and all(
        isinstance(each, dict) and set(each) == {"match", "set"} and isinstance(each["set"], dict)
        for each in value
    )
    if not is_list:
        raise StudyError(
            f'{where} must have two tables, such as match = {{ privacy = "on", sites = 20 }} and '
            "set = { privatizer.clip_norm = 3.5 }."
        )
    places = _places([each["match"] for each in value], axes, where=f"{where} match")
    return tuple(Override(place, each["set"]) for place, each in zip(places, value, strict=True))


def _axes(table: Mapping[str, Any], *, where: str) -> tuple[Axis, ...]:
    short = [key.rpartition(".")[2] for key in table]
    axes = []
    for key, last in zip(table, short, strict=True):
        name = last if short.count(last) == 1 else key
        place = f"{where} {key}"
        if name in COLUMNS or not re.fullmatch(r"[\w.-]+", name):
            raise StudyError(
                f"{place}: an axis cannot be called {name!r}, which is a column of the table; "
                "seeds go into 'seeds', other values need named choices."
            )
        values = table[key]
        pairs = _values(key, values, place) if isinstance(values, list) else _named(values, place)
        choices = tuple(Choice(_label(text), changes) for text, changes in pairs)
        labels = [choice.label for choice in choices]
        if len(set(labels)) != len(labels):
            raise StudyError(f"{place}: two of its choices have one name.")
        axes.append(Axis(name, choices, is_of_values=isinstance(values, list)))
    return tuple(axes)


def _values(key: str, values: list[Any], place: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the choices of an axis that is one key."""
    table, dot, rest = key.partition(".")
    if not dot or not rest:
        raise StudyError(f'{place}: write the key as "table.key", as in "federation.sites".')
    if not values or not all(isinstance(v, str | int | float) for v in values):
        raise StudyError(
            f"{place}: give a list of numbers or strings; other values need a name each, as in "
            "[grid.axis.choice]."
        )
    pairs = []
    for value in values:
        inner: Any = value
        for part in reversed(rest.split(".")):
            inner = {part: inner}
        pairs.append((_text(value), {table: inner}))
    return pairs


def _named(values: object, place: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the choices of an axis of named choices."""
    if not isinstance(values, dict) or not values:
        raise StudyError(f"{place}: give a list of values, or a table for each named choice.")
    for label, changes in values.items():
        if not isinstance(changes, dict):
            raise StudyError(
                f"{place}.{label}: a choice is a table of a study's keys, such as "
                '{ privatizer.name = "none" }.'
            )
    return list(values.items())


def _text(value: object) -> str:
    """Return a value as TOML writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _label(text: str) -> str:
    """Return `text` in a form that a folder's name can contain."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-") or "-"


def _keys(changes: Mapping[str, Any]) -> set[str]:
    """Return the dotted keys that `changes` sets."""
    found = set()
    for key, value in changes.items():
        if isinstance(value, dict):
            found |= {f"{key}.{inner}" for inner in _keys(value)}
        else:
            found.add(key)
    return found
