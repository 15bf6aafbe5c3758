"""Every study file under docs/studies is one: all cells build, and of every choice one plans."""

from __future__ import annotations

import csv
import tomllib
from pathlib import Path
from typing import Any, cast

import attrs
import pytest

from cohortium import Federation, discover, tuning
from cohortium import grid as grids

STUDIES = sorted((Path(__file__).parents[2] / "docs" / "studies").glob("*.toml"))

SMALL = ("dataset.examples=800", "dataset.validation=10", "dataset.test=10")


def made_up(path: Path) -> list[str]:
    """Small made-up images, also in place of real ones, which are not everywhere."""
    name = tomllib.loads(path.read_text("utf-8"))["dataset"]["name"]
    return [*SMALL] if name.startswith("phantom") else ["dataset.name=phantom", *SMALL]


def one_of_each(cells: tuple[grids.Cell, ...]) -> list[grids.Cell]:
    """Few cells in which every choice occurs."""
    chosen, seen = [], set[tuple[str, str]]()
    for cell in cells:
        if not set(cell.place.items()) <= seen:
            chosen.append(cell)
            seen |= set(cell.place.items())
    return chosen


def plannable() -> list[object]:
    found: list[object] = []
    for path in STUDIES:
        if tuning.has_tuning(path):
            continue
        if not grids.is_grid(path):
            found.append(pytest.param(path, None, id=path.stem))
            continue
        grid = grids.read(path, made_up(path))
        found += [
            pytest.param(path, cell, id=f"{path.stem} {cell.name}")
            for cell in one_of_each(grid.cells())
        ]
    return found


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_cell_of_a_study_is_a_federation(path: Path) -> None:
    if tuning.has_tuning(path):
        tuning.read(path)
        return
    if not grids.is_grid(path):
        Federation.read(path)
        return
    grid, catalog = grids.read(path), discover()
    for cell in grid.cells():
        assert cell.federation(grid.seeds[0], catalog).seed == grid.seeds[0]


@pytest.mark.slow
@pytest.mark.parametrize(("path", "cell"), plannable())
def test_every_choice_of_a_study_can_be_prepared(path: Path, cell: grids.Cell | None) -> None:
    if "weights =" in path.read_text("utf-8"):
        pytest.skip("it trains a network for minutes before it can plan")
    federation = Federation.read(path, made_up(path)) if cell is None else cell.federation(1)
    if getattr(federation.trainer, "logit_adjustment", ()):
        # It has a number for each class of the real images, and made-up ones have more classes.
        trainer = attrs.evolve(cast("Any", federation.trainer), logit_adjustment=())
        federation = attrs.evolve(federation, trainer=trainer)
    ready = federation.prepare()
    guarantee = ready.run_config.plan.guarantee
    if guarantee is not None:
        assert guarantee.epsilon <= federation.privatizer.epsilon * 1.001  # type: ignore[attr-defined]


TABLES = sorted((STUDIES[0].parent / "results").glob("*/table.md"))


@pytest.mark.parametrize("table", TABLES, ids=lambda path: path.parent.name)
def test_study_pages_contain_generated_result_tables(table: Path) -> None:
    page = "".join(p.read_text("utf-8") for p in sorted(STUDIES[0].parent.glob("*.md")))
    assert table.read_text("utf-8") in page
    # A search is told in words; every question has its picture.
    if not table.parent.name.startswith("search-"):
        assert f"results/{table.parent.name}/plot.svg" in page
    assert (table.parent / "plot.svg").exists()
    lines = (table.parent / "runs.csv").read_text("utf-8").splitlines()
    runs = list(csv.DictReader(lines))
    assert runs
    assert all(run["versions"] and run["weights_sha256"] and run["seed"] for run in runs)


@pytest.mark.slow
def test_paper_grid_matches_published_settings() -> None:
    path = next(p for p in STUDIES if p.stem == "paper")
    cells = [c for c in grids.read(path).cells() if c.place["scale"] == "full"]
    assert {c.place["sites"] for c in cells} == {"5", "10", "20"}
    assert {c.place["secagg"] for c in cells} == {"on", "off"}
    for cell in cells:
        federation = cell.federation(1)
        toml = federation.as_toml()
        assert federation.rounds == 50
        assert "width = 64" in toml
        assert "batch_size = 32" in toml
        assert "local_epochs = 3" in toml
        if cell.place["privacy"] != "off":
            assert "clip_norm = 7.0\n" in toml
            assert "epsilon = 6.0\n" in toml
            assert "delta = 0.00019\n" in toml
        if cell.place["secagg"] == "on":
            assert "reconstruction_threshold = 4\nnum_shares = 5\n" in toml
