"""From a grid file to its cells: every combination of one choice from each axis."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Literal

from attrs import frozen

from cohortium import study
from cohortium.errors import StudyError, near

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from cohortium.catalog import Catalog
    from cohortium.federation import Federation
    from cohortium.study import Tables

MOST_NAME = 200
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
    """What a grid varies, and how."""

    name: str
    choices: tuple[Choice, ...]


@frozen
class Joint:
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
    """

    place: Mapping[str, str]
    tables: Tables
    where: str
    folder: Path | None = None

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
        return study.build(tables, where=self.where, catalog=catalog, folder=self.folder)


@frozen(kw_only=True)
class Grid:
    """A grid file as read.

    Attributes:
        name: The file's name without its ending.
        axes: In the file's order.
        seeds: Every cell is run once with each.
        images: Which its table is of.
        exclude: Combinations that are no cells: labels on some of the axes.
        joint: What combinations set, in the file's order, after their choices.
        base: What all cells share.
        where: How an error names the file.
        folder: Where the file lies.
    """

    name: str
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    images: Images
    exclude: tuple[Mapping[str, str], ...]
    joint: tuple[Joint, ...]
    base: Tables
    where: str
    folder: Path | None = None

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
            for each in self.joint:
                if each.place.items() <= place.items():
                    tables = study.merge(tables, each.changes, where=where)
            if self.images == "validation" and tables["federation"].get("evaluate_every") == 0:
                raise StudyError(
                    f"{where}: the grid's table is of validation images, on which "
                    "federation.evaluate_every = 0 never scores; give it another number."
                )
            cell = Cell(place=place, tables=tables, where=where, folder=self.folder)
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
                        f"--only {text}: {self.where} has no {key!r} there; {near(key, among)}"
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
