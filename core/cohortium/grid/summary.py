"""What a grid's finished runs came to: means and spreads, as Markdown, CSV and a plot."""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING, Any

from attrs import frozen

from cohortium import sheets
from cohortium.errors import RunError
from cohortium.files import write_whole
from cohortium.record import SITE_SCORES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from cohortium.grid.cells import Cell, Grid, Images

METRICS = ("accuracy", "balanced_accuracy", "auc")
"""As `result.json` calls them."""

OWN = ("site_accuracy", "personal_accuracy")
"""Of the global model and of each site's own, on what the sites held out; where they did."""


@frozen(kw_only=True)
class Spread:
    """One figure over seeds.

    Attributes:
        mean: Over the runs.
        deviation: Standard deviation over the runs, with n - 1; None for one run.
    """

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        several = len(values) > 1
        return cls(
            mean=statistics.fmean(values),
            deviation=statistics.stdev(values) if several else None,
        )

    def percent(self) -> str:
        """Such as `93.51 ± 0.32`."""
        spread = "" if self.deviation is None else f" ± {100 * self.deviation:.2f}"
        return f"{100 * self.mean:.2f}{spread}"


@frozen(kw_only=True)
class Row:
    """One cell that has finished runs.

    Attributes:
        cell: Which.
        images: Which its figures are of.
        results: Each run's `result.json`, and what `OWN` names, by seed.
    """

    cell: Cell
    images: Images
    results: Mapping[int, Mapping[str, Any]]

    def figure(self, seed: int, metric: str) -> float | None:
        """Of one run; None if it has none."""
        result = self.results[seed]
        if metric in OWN:
            own: float | None = result.get(metric)
            return own
        # A round's figures are of the validation images.
        scores = result if self.images == "test" else result["history"][-1]
        value: float | None = scores.get(metric)
        return value

    def spread(self, metric: str) -> Spread | None:
        """Over the runs; None where a run has none."""
        values = [self.figure(seed, metric) for seed in self.results]
        known = [value for value in values if value is not None]
        return Spread.of(known) if len(known) == len(values) else None

    @property
    def seconds(self) -> float:
        """Mean time of a run."""
        return statistics.fmean(r["seconds"]["total"] for r in self.results.values())

    @property
    def upload_bytes(self) -> int:
        """The most that one site sent in a round."""
        return max(int(r["upload_bytes_per_site_per_round"]) for r in self.results.values())

    @property
    def guarantee(self) -> Mapping[str, Any] | None:
        """The weakest of the runs' guarantees; None if one has none."""
        given = [result["guarantee"] for result in self.results.values()]
        return None if None in given else max(given, key=lambda g: g["epsilon"])


def rows(grid: Grid, out: Path) -> tuple[Row, ...]:
    """Every cell with a finished run under `out`, whichever call ran it, in the grid's order."""
    found = []
    for cell in grid.cells():
        results = {}
        for seed in grid.seeds:
            path = out / cell.name / f"seed-{seed}" / "result.json"
            if path.exists():
                results[seed] = json.loads(path.read_text("utf-8")) | _own(path.parent)
        if results:
            found.append(Row(cell=cell, images=grid.images, results=results))
    return tuple(found)


def _own(folder: Path) -> dict[str, float]:
    """Means over all images that the sites of a run held out."""
    path = folder / SITE_SCORES
    if not path.exists():
        return {}
    sites = json.loads(path.read_text("utf-8"))
    images = sum(site["images"] for site in sites)
    return {
        name: sum(site["images"] * site[key] for site in sites) / images
        for name, key in zip(OWN, ("accuracy", "personal_accuracy"), strict=True)
        if images
    }


def _metrics(table: Sequence[Row]) -> tuple[str, ...]:
    """What the table tells of."""
    has_own = any(row.spread(OWN[0]) for row in table)
    return (*METRICS, *OWN) if has_own else METRICS


def write(grid: Grid, table: Sequence[Row], out: Path) -> None:
    """Write `table.md`, which links the runs' reports, `table.csv`, `runs.csv` and `plot.svg`.

    Raises:
        RunError: They cannot be written.
    """
    from cohortium.grid.plot import draw

    axes = [axis.name for axis in grid.axes]
    contents = {
        "table.md": (markdown(axes, table) + _links(table, out)).encode(),
        "table.csv": _csv(figures(axes, table)),
        "runs.csv": _csv(_single(axes, table)),
        "plot.svg": draw(grid, table),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, data in contents.items():
            write_whole(out / name, data)
    except OSError as error:
        raise RunError(f"cannot write to {out}: {error.strerror}.") from error


def markdown(axes: Sequence[str], table: Sequence[Row]) -> str:
    """The table for people; shares in percent, mean ± standard deviation; kB of a site a round."""
    metrics = _metrics(table)
    names = ["accuracy", "balanced", "AUC", "global at sites", "own at sites"][: len(metrics)]
    head = [*axes, *names, "guarantee", "seeds", "kB up", "seconds"]
    lines = [head, ["---"] * len(head)]
    for row in table:
        spreads = [row.spread(metric) for metric in metrics]
        lines.append(
            [
                *(row.cell.place[axis] for axis in axes),
                *("–" if spread is None else spread.percent() for spread in spreads),
                _promise(row.guarantee),
                str(len(row.results)),
                f"{row.upload_bytes / 1000:,.1f}",
                f"{row.seconds:.0f}",
            ]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _links(table: Sequence[Row], out: Path) -> str:
    """Below the table: each run's report, where there is one."""
    lines = []
    for row in table:
        places = {seed: f"{row.cell.name}/seed-{seed}/report.html" for seed in row.results}
        links = [
            f"[seed {seed}](<{place}>)" for seed, place in places.items() if (out / place).exists()
        ]
        if links:
            lines.append(f"- {row.cell.name}: {', '.join(links)}\n")
    return "".join(["\nReports:\n\n", *lines]) if lines else ""


def _promise(guarantee: Mapping[str, Any] | None) -> str:
    if guarantee is None:
        return "none"
    simulated = ", simulation" if guarantee["simulation"] else ""
    return (
        f"ε = {guarantee['epsilon']:.3g} at δ = {guarantee['delta']:.2g}, one "
        f"{guarantee['unit']}, against {guarantee['against']}{simulated}"
    )


def figures(axes: Sequence[str], table: Sequence[Row]) -> Iterable[dict[str, object]]:
    """The table as plain values, a line for each cell; shares of 1."""
    for row in table:
        line: dict[str, object] = {axis: row.cell.place[axis] for axis in axes}
        line |= {"images": row.images, "seeds": len(row.results)}
        for metric in _metrics(table):
            spread = row.spread(metric)
            line[f"{metric}_mean"] = None if spread is None else spread.mean
            line[f"{metric}_sd"] = None if spread is None else spread.deviation
        yield (
            line
            | _terms(row.guarantee)
            | {
                "upload_bytes": row.upload_bytes,
                "seconds_mean": row.seconds,
            }
        )


def _single(axes: Sequence[str], table: Sequence[Row]) -> Iterable[dict[str, object]]:
    """A line for each run, with what it was run on."""
    for row in table:
        for seed, result in row.results.items():
            yield {
                **{axis: row.cell.place[axis] for axis in axes},
                "seed": seed,
                "images": row.images,
                **{metric: row.figure(seed, metric) for metric in _metrics(table)},
                **_terms(result["guarantee"]),
                "seconds": result["seconds"]["total"],
                "upload_bytes": result["upload_bytes_per_site_per_round"],
                "dropouts": result["dropouts"],
                "weights_sha256": result["weights_sha256"],
                "versions": " ".join(f"{k}={v}" for k, v in sorted(result["versions"].items())),
            }


def _terms(guarantee: Mapping[str, Any] | None) -> dict[str, object]:
    keys = ("epsilon", "delta", "unit", "adjacency", "against", "colluding", "simulation")
    # Beside an axis that may well be called epsilon.
    return {f"guarantee_{k}": None if guarantee is None else guarantee[k] for k in keys}


def _csv(lines: Iterable[Mapping[str, object]]) -> bytes:
    lines = list(lines)
    return sheets.write([*map(list, lines[:1]), *(list(line.values()) for line in lines)]).encode()
