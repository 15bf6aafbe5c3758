"""Cells of a grid: every combination of choices from its axes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from attrs import frozen

from cohortium.errors import CohortiumError, RequestError, StudyError
from cohortium.federation import Federation
from cohortium.study import study_file
from cohortium.study.layered_tables import Layer, resolve
from cohortium.text import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from cohortium.catalog.discovery import Catalog
    from cohortium.study.layered_tables import Tables

MAX_NAME_LENGTH = 200
"""Characters of a cell's folder name. File systems allow 255 bytes."""

Images = Literal["test", "validation"]
"""Images that a grid's table is about. A search uses only the validation images."""

SEED = "seed"
"""Axis that every grid has. Its runs differ in `federation.seed`."""


@frozen
class Choice:
    """One value of an axis.

    Attributes:
        label: Its name for people and folders.
        changes: Tables of a study that it sets.
    """

    label: str
    changes: Mapping[str, Any]


@frozen
class Axis:
    """One dimension of a grid, with its choices.

    Attributes:
        name: Its name in tables and folders.
        choices: In the file's order.
        is_of_values: Whether its labels are the values of one key. That key must then keep them.
    """

    name: str
    choices: tuple[Choice, ...]
    is_of_values: bool

    def has_key(self, key: str) -> bool:
        """Return whether the choices are the values of `key`, such as "federation.sites"."""
        found: Any = self.choices[0].changes
        for part in key.split("."):
            if not isinstance(found, Mapping) or part not in found:
                return False
            found = found[part]
        return self.is_of_values and key.rpartition(".")[2] == self.name


@frozen
class Override:
    """Settings of some combinations, in addition to those of their choices.

    Attributes:
        place: Labels on some of the axes.
        changes: Tables of a study that the matching cells have.
    """

    place: Mapping[str, str]
    changes: Mapping[str, Any]


@frozen(kw_only=True)
class Cell:
    """One combination of choices.

    Attributes:
        place: Its label on each axis, in the file's order.
        tables: Its study, without a seed.
        where: Its name in an error.
        folder: Folder of the grid's file.
        cli_overrides: Settings of the command line, for all cells.
        ignored_keys: A sentence for each choice that leaves out keys of the file.
    """

    place: Mapping[str, str]
    tables: Tables
    where: str
    folder: Path | None = None
    cli_overrides: tuple[Layer, ...] = ()
    ignored_keys: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name such as `sites=10,privacy=on`, also of the cell's folder."""
        return ",".join(f"{axis}={label}" for axis, label in self.place.items()) or "all"

    def federation(self, seed: int, catalog: Catalog | None = None) -> Federation:
        """Return the study with `seed`.

        Args:
            seed: The public seed.
            catalog: Where names are looked up. If None, plugins are discovered anew.

        Raises:
            CohortiumError: The study asks for something impossible.
        """
        tables = {**self.tables, "federation": {**self.tables["federation"], "seed": seed}}
        try:
            return study_file.build(
                tables,
                where=self.where,
                overrides=study_file.override_locations(self.cli_overrides),
                catalog=catalog,
                folder=self.folder,
                into=Federation,
            )
        except CohortiumError as error:
            if self.where in str(error):
                raise
            raise type(error)(f"{self.where}: {error}") from error


@frozen(kw_only=True)
class Grid:
    """A grid file as read.

    Attributes:
        name: The file's name without its ending.
        axes: In the file's order.
        seeds: Seeds with which every cell is run, once each.
        images: Images that its table is about.
        exclude: Combinations that are no cells, as labels on some of the axes.
        overrides: Settings of combinations, in the file's order. They apply after the choices.
        cli_overrides: Settings of the command line, for all cells.
        base: The tables that all cells share, the defaults included.
        written: The part of `base` that is in the file.
        where: The file's name in an error.
        heading: Name of the table of the axes in an error.
        folder: Folder of the file.
        ignored_keys: A sentence for each setting that leaves out another one.
    """

    name: str
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    images: Images
    exclude: tuple[Mapping[str, str], ...]
    overrides: tuple[Override, ...]
    cli_overrides: tuple[Layer, ...]
    base: Tables
    written: Tables
    where: str
    heading: str = "[grid]"
    folder: Path | None = None
    ignored_keys: tuple[str, ...] = ()

    def cells(self) -> tuple[Cell, ...]:
        """Return every combination, the first axis slowest.

        Raises:
            StudyError: A choice sets a key that no study has, or that another choice reverts. Or it
                leaves the table without scores. Or a name is too long.
        """
        found = []
        for chosen in itertools.product(*(axis.choices for axis in self.axes)):
            place = {axis.name: c.label for axis, c in zip(self.axes, chosen, strict=True)}
            if not any(each.items() <= place.items() for each in self.exclude):
                found.append(self._cell(place, chosen))
        return tuple(found)

    def _cell(self, place: Mapping[str, str], chosen: Sequence[Choice]) -> Cell:
        where = f"{self.where} {_format_place(place)}".rstrip()
        layers = [*self._layers(place, chosen), *self.cli_overrides]
        resolved = resolve(self.base, layers, written=self.written, path=self.where)
        if self.images == "validation" and resolved.tables["federation"].get("evaluate_every") == 0:
            raise StudyError(
                f"{where}: the grid's table is of validation images, on which "
                "federation.evaluate_every = 0 never scores; give it another number."
            )
        cell = Cell(
            place=place,
            tables=resolved.tables,
            where=where,
            folder=self.folder,
            cli_overrides=self.cli_overrides,
            ignored_keys=resolved.ignored_keys,
        )
        if len(cell.name) > MAX_NAME_LENGTH:
            raise StudyError(f"{where}: its name is too long for a folder; shorten the labels.")
        return cell

    def _layers(self, place: Mapping[str, str], chosen: Sequence[Choice]) -> Iterator[Layer]:
        """Yield the settings of a cell's choices, then those of its combinations."""
        for axis, choice in zip(self.axes, chosen, strict=True):
            yield Layer(
                changes=choice.changes,
                where=f"{self.where} {self.heading} {axis.name} = {choice.label}",
                # A row's label names the value, so no other value may replace it.
                source="" if axis.is_of_values else axis.name,
            )
        heading = f"{self.where} [{self.heading[:-1]}.override]]"
        for each in self.overrides:
            if each.place.items() <= place.items():
                yield Layer(
                    changes=each.changes,
                    where=f"{heading} {_format_place(each.place)}",
                    overrides=frozenset(each.place),
                )

    def require_distinct(self, catalog: Catalog) -> None:
        """Refuse two cells with equal studies.

        A table would show one result under two names.

        Raises:
            StudyError: There are two.
        """
        known: dict[str, list[tuple[Federation, Cell]]] = {}
        for cell in self.cells():
            try:
                federation = cell.federation(self.seeds[0], catalog)
            except CohortiumError:
                continue  # the run of this cell will refuse it
            alike = known.setdefault(repr(federation), [])
            for other, first in alike:
                if other == federation:
                    raise StudyError(
                        f"{self.where}: the cells {first.name} and {cell.name} are one study; "
                        "let their choices differ, or leave one out with exclude."
                    )
            alike.append((federation, cell))

    def select(self, only: Sequence[str]) -> tuple[tuple[Cell, int], ...]:
        """Return the cells and seeds of runs that match every filter.

        Args:
            only: Filters such as `sites=10`. Several filters of one axis each admit their matches.

        Raises:
            RequestError: A filter names no axis, or no label on it.
        """
        known = {axis.name: [c.label for c in axis.choices] for axis in self.axes}
        known[SEED] = [str(seed) for seed in self.seeds]
        wanted: dict[str, set[str]] = {}
        for text in only:
            axis, equals, label = text.partition("=")
            if not equals:
                raise RequestError(f"--only {text}: write it as axis=choice, as in sites=10.")
            axis = next((a.name for a in self.axes if a.has_key(axis)), axis)
            for key, among in ((axis, known), (label, known.get(axis, ()))):
                if key not in among:
                    raise RequestError(
                        f"--only {text}: {self.where} has no {key!r} there; "
                        f"{did_you_mean(key, among)}"
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


def _format_place(place: Mapping[str, str]) -> str:
    return ", ".join(f"{axis}={label}" for axis, label in place.items())
