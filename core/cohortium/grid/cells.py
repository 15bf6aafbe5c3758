"""From a grid file to its cells: every combination of one choice from each axis."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Literal

from attrs import frozen

from cohortium.errors import CohortiumError, StudyError
from cohortium.federation import Federation
from cohortium.study import study_file
from cohortium.study.resolution import Layer, resolve
from cohortium.text import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from cohortium.catalog.discovery import Catalog
    from cohortium.study.resolution import Tables

MAX_NAME_LENGTH = 200
"""Characters of a cell's folder name; file systems take 255 bytes."""

Images = Literal["test", "validation"]
"""Which images a grid's table is of: a search looks at the validation images alone."""

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
    """What a grid varies, and how.

    Attributes:
        name: What tables and folders call it.
        choices: In the file's order.
        is_of_values: Whether its labels are the values of one key, which so has to have them.
    """

    name: str
    choices: tuple[Choice, ...]
    is_of_values: bool


@frozen
class Override:
    """What some combinations of choices set, beyond what each choice sets by itself.

    Attributes:
        place: Labels on some of the axes.
        changes: Tables of a study that the cells there have.
    """

    place: Mapping[str, str]
    changes: Mapping[str, Any]


@frozen(kw_only=True)
class Cell:
    """One combination of choices.

    Attributes:
        place: Its label on each axis, in the file's order.
        tables: The study that it is, without a seed.
        where: How an error names it.
        folder: Of the grid's file.
        cli_overrides: What the command line sets, in all cells.
        ignored_keys: A sentence for each choice that leaves keys of the file out.
    """

    place: Mapping[str, str]
    tables: Tables
    where: str
    folder: Path | None = None
    cli_overrides: tuple[Layer, ...] = ()
    ignored_keys: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Such as `sites=10,privacy=on`; also its folder's name."""
        return ",".join(f"{axis}={label}" for axis, label in self.place.items()) or "all"

    def federation(self, seed: int, catalog: Catalog | None = None) -> Federation:
        """The study with `seed`, its names looked up in `catalog` or discovered anew.

        Raises:
            CohortiumError: It asks for something that cannot be.
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
        seeds: Every cell is run once with each.
        images: Which its table is of.
        exclude: Combinations that are no cells: labels on some of the axes.
        overrides: What combinations set, in the file's order, after their choices.
        cli_overrides: What the command line sets, in all cells.
        base: What all cells share, the defaults included.
        written: The part of that which the file says.
        where: How an error names the file.
        folder: Where the file lies.
        ignored_keys: A sentence for each setting that leaves another one out.
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
    folder: Path | None = None
    ignored_keys: tuple[str, ...] = ()

    def cells(self) -> tuple[Cell, ...]:
        """Every combination, the first axis slowest.

        Raises:
            StudyError: A choice sets something that no study has or that another one takes back,
                leaves the table without scores, or a name grows too long.
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
        """What the choices of a cell set, and what its combinations do."""
        for axis, choice in zip(self.axes, chosen, strict=True):
            yield Layer(
                changes=choice.changes,
                where=f"{self.where} [grid] {axis.name} = {choice.label}",
                # A row's label says the value: nothing else may take its place.
                source="" if axis.is_of_values else axis.name,
            )
        for each in self.overrides:
            if each.place.items() <= place.items():
                yield Layer(
                    changes=each.changes,
                    where=f"{self.where} [[grid.override]] {_format_place(each.place)}",
                    overrides=frozenset(each.place),
                )

    def require_distinct(self, catalog: Catalog) -> None:
        """Refuse two cells that are one study: a table would tell one result under two names.

        Raises:
            StudyError: There are two.
        """
        known: dict[str, list[tuple[Federation, Cell]]] = {}
        for cell in self.cells():
            try:
                federation = cell.federation(self.seeds[0], catalog)
            except CohortiumError:
                continue  # it is refused where it is to run
            alike = known.setdefault(repr(federation), [])
            for other, first in alike:
                if other == federation:
                    raise StudyError(
                        f"{self.where}: the cells {first.name} and {cell.name} are one study; "
                        "let their choices differ, or leave one out with exclude."
                    )
            alike.append((federation, cell))

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
