"""Runs of a grid, one folder each.

Finished runs are kept, and unfinished ones are resumed.
"""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Literal

import attrs
from attrs import field, frozen

from cohortium import reporting
from cohortium.catalog import construction
from cohortium.catalog.discovery import discover
from cohortium.errors import CohortiumError, RequestError
from cohortium.federation import Federation
from cohortium.grid.shared_models import with_shared_models
from cohortium.study import study_file, toml

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from cohortium.catalog.discovery import Catalog
    from cohortium.grid.cells import Cell, Grid

State = Literal["to run", "unfinished", "finished"]


@frozen(kw_only=True)
class GridRun:
    """One cell with one seed.

    Attributes:
        cell: Its cell of the grid.
        seed: Its public seed.
        federation: Its study.
        folder: Folder of its record.
        state: Whether that record exists and is complete.
    """

    cell: Cell
    seed: int
    federation: Federation = field(repr=False)
    folder: Path
    state: State

    @property
    def name(self) -> str:
        """Name such as `sites=10,privacy=on seed 1`."""
        return f"{self.cell.name} seed {self.seed}"


@frozen(kw_only=True)
class GridRunResult:
    """Outcome of one run.

    Attributes:
        run: The run.
        failure: The reason of a failure, in a sentence. Empty if the run succeeded.
        traceback: The traceback, if the cause was no user's mistake.
    """

    run: GridRun
    failure: str = ""
    traceback: str = ""


def plan(grid: Grid, out: Path, only: Sequence[str] = ()) -> tuple[GridRun, ...]:
    """Return the requested runs, with the state of each.

    Raises:
        CohortiumError: A cell is no study, two cells are one study, a filter names nothing, or a
            folder holds the record of another study.
    """
    catalog, runs = discover(), []
    grid.require_distinct(catalog)
    selected = grid.select(only)
    studies = with_shared_models(cell.federation(seed, catalog) for cell, seed in selected)
    for (cell, seed), federation in zip(selected, studies, strict=True):
        folder = out / cell.name / f"seed-{seed}"
        state = _state(folder, federation, catalog)
        runs.append(
            GridRun(cell=cell, seed=seed, federation=federation, folder=folder, state=state)
        )
    return tuple(runs)


def _state(folder: Path, federation: Federation, catalog: Catalog) -> State:
    if not folder.exists() or not any(folder.iterdir()):
        return "to run"
    record = folder / "study.toml"
    begun = _read(record, catalog) if record.exists() else None
    # Other observers do not make it another run.
    if begun is None or attrs.evolve(begun, observers=federation.observers) != federation:
        raise RequestError(
            f"{folder} holds something else than this run; give another folder with --out, or "
            "move it away."
        )
    return "finished" if (folder / "result.json").exists() else "unfinished"


def _read(record: Path, catalog: Catalog) -> Federation | None:
    """Return the study of a record, or None if no longer valid."""
    try:
        return study_file.build(
            toml.read(record, what="the study"), where=str(record), catalog=catalog, into=Federation
        )
    except CohortiumError:
        return None


def run(
    runs: Sequence[GridRun], *, jobs: int = 1, observe: Sequence[str] = (), own: Sequence[str] = ()
) -> Iterator[GridRunResult]:
    """Execute unfinished runs, and yield every outcome as it arrives.

    One failure stops no other run.

    Args:
        runs: As planned.
        jobs: Number of runs at a time. If several, each has a process of its own.
        observe: Names of observers that receive each run's events, also after a resumption.
        own: Names of observers for this call alone. A later resumption does not inform them.
    """
    waiting = []
    for each in runs:
        if each.state == "finished":
            yield GridRunResult(run=each)
        else:
            waiting.append(each)
    if jobs == 1 or len(waiting) < 2:  # noqa: PLR2004
        for each in waiting:
            yield _execute(each, tuple(observe), tuple(own))
        return
    yield from _execute_in_parallel(waiting, jobs, tuple(observe), tuple(own))


def _execute_in_parallel(
    runs: Sequence[GridRun], jobs: int, observe: tuple[str, ...], own: tuple[str, ...]
) -> Iterator[GridRunResult]:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    # Forking a process in which torch has threads can hang it.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        futures = {pool.submit(_execute, each, observe, own): each for each in runs}
        try:
            for future in as_completed(futures):
                error = future.exception()
                if error is None:
                    yield future.result()
                else:  # the process itself ended, perhaps for lack of memory
                    yield GridRunResult(run=futures[future], failure=f"its process ended: {error}")
        finally:
            pool.shutdown(cancel_futures=True)


def _execute(each: GridRun, observe: tuple[str, ...], own: tuple[str, ...]) -> GridRunResult:
    try:
        catalog, is_begun = discover(), each.state == "unfinished"
        begun = _read(each.folder / "study.toml", catalog) if is_begun else None
        told = (*each.federation.observers, *(begun.observers if begun else ()), *observe)
        federation = attrs.evolve(each.federation, observers=tuple(dict.fromkeys(told)))
        watching = [
            construction.build_part(catalog, "observer", {"name": name}, where="the command")
            for name in own
            if name not in told
        ]
        (federation.resume if is_begun else federation.run)(each.folder, observers=watching)
        reporting.write([each.folder])
    except CohortiumError as error:
        return GridRunResult(run=each, failure=str(error))
    except Exception as error:  # noqa: BLE001 - a fault in one cell's plugin, reported in full
        sentence = f"{type(error).__name__}: {error}"
        return GridRunResult(run=each, failure=sentence, traceback=traceback.format_exc())
    return GridRunResult(run=each)
