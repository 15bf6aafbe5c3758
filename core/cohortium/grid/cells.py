"""From a grid file to its cells: every combination of one choice from each axis."""

from __future__ import annotations

import itertools
import math
import re
from typing import TYPE_CHECKING, Any, Literal

from attrs import frozen

from cohortium import composition, study
from cohortium import tables as toml
from cohortium.errors import StudyError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from cohortium.catalog import Catalog
    from cohortium.federation import Federation
    from cohortium.study import Tables

MOST_RUNS = 10_000
"""Of one grid: beyond it a list of values was surely mistyped."""

MOST_NAME = 200
"""Characters of a cell's folder name; file systems take 255 bytes."""

Images = Literal["test", "validation"]
"""Which images a grid's table is of: a search looks at the validation images alone."""

COLUMNS = ("seed", "seeds", "images", "accuracy", "auc", "seconds")
"""Names that mean something else in a table."""

SEED = "seed"
"""The axis that every grid has: its runs differ in `federation.seed`."""


@frozen
class Choice:
    """One value of an axis.

    Attributes:
        label: How people and folders name it.
        changes: Tables of a study that it sets.
    """

    label: str
    changes: Mapping[str, Any]


@frozen
class Axis:
    """What a grid varies, and how."""

    name: str
    choices: tuple[Choice, ...]


@frozen(kw_only=True)
class Cell:
    """One combination of choices.

    Attributes:
        place: Its label on each axis, in the file's order.
        tables: The study that it is, without a seed.
        where: How an error names it.
    """

    place: Mapping[str, str]
    tables: Tables
    where: str

    @property
    def name(self) -> str:
        """Such as `sites=10,privacy=on`; also its folder's name."""
        return ",".join(f"{axis}={label}" for axis, label in self.place.items()) or "all"

    def federation(self, seed: int, catalog: Catalog | None = None) -> Federation:
        """The study with `seed`, its names looked up in `catalog` or discovered anew.

        Raises:
            CohortiumError: It asks for something that cannot be.
        """
        tables = study.merge(self.tables, {"federation": {"seed": seed}}, where=self.where)
        return study.build(tables, where=self.where, catalog=catalog)


@frozen(kw_only=True)
class Grid:
    """A grid file as read.

    Attributes:
        name: The file's name without its ending.
        axes: In the file's order.
        seeds: Every cell is run once with each.
        images: Which its table is of.
        exclude: Combinations that are no cells: labels on some of the axes.
        base: What all cells share.
        where: How an error names the file.
    """

    name: str
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    images: Images
    exclude: tuple[Mapping[str, str], ...]
    base: Tables
    where: str

    def cells(self) -> tuple[Cell, ...]:
        """Every combination, the first axis slowest.

        Raises:
            StudyError: A choice sets something that no study has, leaves the table without scores,
                or a name grows too long.
        """
        cells = []
        for chosen in itertools.product(*(axis.choices for axis in self.axes)):
            place = {axis.name: c.label for axis, c in zip(self.axes, chosen, strict=True)}
            if any(each.items() <= place.items() for each in self.exclude):
                continue
            where = f"{self.where} {', '.join(f'{a}={c}' for a, c in place.items())}".rstrip()
            tables = self.base
            for choice in chosen:
                tables = study.merge(tables, choice.changes, where=where)
            if self.images == "validation" and tables["federation"].get("evaluate_every") == 0:
                raise StudyError(
                    f"{where}: the grid's table is of validation images, on which "
                    "federation.evaluate_every = 0 never scores; give it another number."
                )
            cell = Cell(place=place, tables=tables, where=where)
            if len(cell.name) > MOST_NAME:
                raise StudyError(f"{where}: its name is too long for a folder; shorten the labels.")
            cells.append(cell)
        return tuple(cells)

    def select(self, only: Sequence[str]) -> tuple[tuple[Cell, int], ...]:
        """The runs, as pairs of a cell and a seed, that every filter lets through.

        Args:
            only: Filters such as `sites=10`; several of one axis let each of theirs through.

        Raises:
            StudyError: A filter names no axis, or nothing on it.
        """
        known = {axis.name: [c.label for c in axis.choices] for axis in self.axes}
        known[SEED] = [str(seed) for seed in self.seeds]
        wanted: dict[str, set[str]] = {}
        for text in only:
            axis, equals, label = text.partition("=")
            if not equals:
                raise StudyError(f"--only {text}: write it as axis=choice, as in sites=10.")
            for key, among in ((axis, known), (label, known.get(axis, ()))):
                if key not in among:
                    raise StudyError(
                        f"--only {text}: {self.where} has no {key!r} there; "
                        f"{composition.near(key, among)}"
                    )
            wanted.setdefault(axis, set()).add(label)
        return tuple(
            (cell, seed)
            for cell in self.cells()
            for seed in self.seeds
            if all(
                label in wanted.get(axis, {label})
                for axis, label in {**cell.place, SEED: str(seed)}.items()
            )
        )


def is_grid(path: Path) -> bool:
    """Whether the file has a `[grid]`.

    Raises:
        StudyError: It cannot be read.
    """
    return "grid" in toml.read(path, what="the study")


def read(path: Path, settings: Sequence[str] = ()) -> Grid:
    """The grid that a file describes.

    Args:
        path: A study file with a `[grid]`.
        settings: Changes to the study as `table.key=value`, for all cells.

    Raises:
        StudyError: The file cannot be read, or its grid is none; or a setting changes what the
            grid varies.
    """
    where = str(path)
    tables = toml.read(path, what="the study")
    table = tables.pop("grid", {})
    if not isinstance(table, dict):
        raise StudyError(f"{where}: [grid] must be a table.")
    base = study.merge(study.quick_start(), tables, where=where)
    seeds = _seeds(table.pop("seeds", None), base, where=where)
    images = table.pop("images", "test")
    if images not in ("test", "validation"):
        raise StudyError(f'{where} [grid] images must be "test" or "validation", not {images!r}.')
    exclude = table.pop("exclude", [])
    axes = _axes(table, where=where)
    count = len(seeds) * math.prod(len(axis.choices) for axis in axes)
    if count > MOST_RUNS:
        raise StudyError(f"{where} [grid] makes {count} runs, more than {MOST_RUNS}; shorten it.")
    varied = {key for axis in axes for c in axis.choices for key in _keys(c.changes)}
    for setting in settings:
        changes = study.parse_setting(setting)
        if twice := _keys(changes) & (varied | {"federation.seed"}):
            raise StudyError(
                f"--set {setting}: the grid varies {twice.pop()}; choose with --only instead."
            )
        base = study.merge(base, changes, where=f"--set {setting}")
    return Grid(
        name=path.stem,
        axes=axes,
        seeds=seeds,
        images=images,
        exclude=_exclude(exclude, axes, where=where),
        base=base,
        where=where,
    )


def _seeds(value: Any, base: Tables, *, where: str) -> tuple[int, ...]:
    if value is None:
        value = [base["federation"].get("seed", 1)]
    is_list = isinstance(value, list) and all(type(seed) is int and seed >= 0 for seed in value)
    if not is_list or not value or len(set(value)) != len(value):
        raise StudyError(
            f"{where} [grid] seeds must be a list of different whole numbers, such as [1, 2, 3]."
        )
    return tuple(value)


def _exclude(value: Any, axes: Sequence[Axis], *, where: str) -> tuple[Mapping[str, str], ...]:
    known = {axis.name: {choice.label for choice in axis.choices} for axis in axes}
    if not isinstance(value, list) or not all(isinstance(each, dict) and each for each in value):
        raise StudyError(
            f'{where} [grid] exclude must be a list of tables such as {{ privacy = "on" }}.'
        )
    for each in value:
        for axis, label in each.items():
            if _label(_text(label)) not in known.get(axis, ()):
                raise StudyError(f"{where} [grid] exclude: there is no {axis} = {_text(label)}.")
    return tuple({axis: _label(_text(label)) for axis, label in each.items()} for each in value)


def _axes(table: Mapping[str, Any], *, where: str) -> tuple[Axis, ...]:
    short = [key.rpartition(".")[2] for key in table]
    axes = []
    for key, last in zip(table, short, strict=True):
        name = last if short.count(last) == 1 else key
        place = f"{where} [grid] {key}"
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
        axes.append(Axis(name, choices))
    return tuple(axes)


def _values(key: str, values: list[Any], place: str) -> list[tuple[str, dict[str, Any]]]:
    """The choices of an axis that is one key."""
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
    """The choices of an axis that name what they set."""
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
    """A value as TOML writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _label(text: str) -> str:
    """`text` as a folder's name can hold it."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-") or "-"


def _keys(changes: Mapping[str, Any]) -> set[str]:
    """The dotted keys that `changes` sets."""
    found = set()
    for key, value in changes.items():
        if isinstance(value, dict):
            found |= {f"{key}.{inner}" for inner in _keys(value)}
        else:
            found.add(key)
    return found
