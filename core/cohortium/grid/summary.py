"""Results of a grid's finished runs, as Markdown, CSV and a plot.

They are means and spreads over seeds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohortium.data.scores import metric_name
from cohortium.errors import RunError
from cohortium.grid.rows import HEADS, groupings_of, metrics_of
from cohortium.storage import csv_rows
from cohortium.storage.atomic import atomic_write
from cohortium.text import escape_markdown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from cohortium.grid.cells import Grid
    from cohortium.grid.rows import Row
    from cohortium.privacy.guarantee import Guarantee


def write(grid: Grid, table: Sequence[Row], out: Path) -> None:
    """Write `table.md`, `table.csv`, `runs.csv` and `plot.svg`.

    `table.md` links the runs' reports.

    Raises:
        RunError: The files cannot be written.
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
            atomic_write(out / name, data)
    except OSError as error:
        raise RunError(f"cannot write to {out}: {error.strerror}.") from error


def markdown(axes: Sequence[str], table: Sequence[Row]) -> str:
    """Return the table for people, as Markdown.

    Shares are in percent, as mean ± standard deviation. Uploads are in kB per site and round.
    `majority` is the share of the most frequent class: the accuracy of always predicting it.
    The `worst` columns name the centre, or the value of a group, with the lowest mean of the main
    metric.
    """
    metrics, groupings = metrics_of(table), groupings_of(table)
    several = len({row.data for row in table}) > 1
    whose = "global " if any(row.is_personal for row in table) else ""
    known = {name for row in table for name in row.metrics}
    names = [
        (whose if name in known else "") + HEADS.get(name, escape_markdown(metric_name(name)))
        for name in metrics
    ]
    data = ["data set"] if several else []
    worst = [f"worst {escape_markdown(name)}" for name in groupings]
    head = [
        *axes,
        *data,
        *names,
        *worst,
        "guarantee",
        "seeds",
        "rounds finished",
        "kB up",
        "seconds",
    ]
    lines = [head, ["---"] * len(head)]
    for row in table:
        fewest, most = row.rounds
        lines.append(
            [
                *(row.cell.place[axis] for axis in axes),
                *([escape_markdown(row.data) or "–"] if several else []),
                *(_shown(row, metric) for metric in metrics),
                *(_worst(row, name) for name in groupings),
                _promise(row.guarantee),
                str(len(row.results)),
                str(most) if fewest == most else f"{fewest}–{most}",
                f"{row.upload_bytes / 1000:,.1f}",
                f"{row.seconds:.0f}",
            ]
        )
    note = ""
    if whose:
        note = (
            "\nWhere a trainer makes each site a network of its own, no site uses the global one: "
            "its figures are of a network that nobody uses.\n"
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + note


def _shown(row: Row, metric: str) -> str:
    spread = row.summary(metric)
    if spread is None:
        return "–"
    # It belongs to the images, which are the same for every seed.
    if metric == "majority_share" and not spread.standard_deviation:
        return f"{100 * spread.mean:.2f}"
    return spread.percent()


def _worst(row: Row, grouping: str) -> str:
    found = row.worst_group(grouping)
    return (
        "–"
        if found is None
        else f"{escape_markdown(found.value or 'not stated')}: {found.score.percent()}"
    )


def _links(table: Sequence[Row], out: Path) -> str:
    """Return links to each run's report, for below the table."""
    lines = []
    for row in table:
        places = {seed: f"{row.cell.name}/seed-{seed}/report.html" for seed in row.results}
        links = [
            f"[seed {seed}](<{place}>)" for seed, place in places.items() if (out / place).exists()
        ]
        if links:
            lines.append(f"- {row.cell.name}: {', '.join(links)}\n")
    return "".join(["\nReports:\n\n", *lines]) if lines else ""


def _promise(guarantee: Guarantee | None) -> str:
    if guarantee is None:
        return "none"
    simulated = ", simulation" if guarantee.simulation else ""
    return (
        f"ε = {guarantee.epsilon:.3g} at δ = {guarantee.delta:.2g}, one {guarantee.unit}, against "
        f"{guarantee.against}{simulated}"
    )


def figures(axes: Sequence[str], table: Sequence[Row]) -> Iterable[dict[str, object]]:
    """Return the table as plain values, a line for each cell.

    Shares are shares of 1.
    """
    for row in table:
        line: dict[str, object] = {axis: row.cell.place[axis] for axis in axes}
        line |= {"data_set": row.data, "images": row.images, "seeds": len(row.results)}
        line |= dict(zip(("rounds_min", "rounds_max"), row.rounds, strict=True))
        line["is_personal"] = row.is_personal
        for metric in metrics_of(table):
            spread = row.summary(metric)
            line[f"{metric}_mean"] = None if spread is None else spread.mean
            line[f"{metric}_sd"] = None if spread is None else spread.standard_deviation
        for name in groupings_of(table):
            worst = row.worst_group(name)
            line |= {
                f"worst_{name}": None if worst is None else worst.value or "not stated",
                f"worst_{name}_mean": None if worst is None else worst.score.mean,
                f"worst_{name}_sd": None if worst is None else worst.score.standard_deviation,
            }
        yield (
            line
            | _terms(row.guarantee)
            | {
                "upload_bytes": row.upload_bytes,
                "seconds_mean": row.seconds,
            }
        )


def _single(axes: Sequence[str], table: Sequence[Row]) -> Iterable[dict[str, object]]:
    """Yield a line for each run, with its data, scores by group, guarantee and versions."""
    values = {
        (name, each): None
        for name in groupings_of(table)
        for row in table
        for seed in row.results
        for each in row.scores_by_value(seed, name)
    }
    for row in table:
        for seed, result in row.results.items():
            yield {
                **{axis: row.cell.place[axis] for axis in axes},
                "seed": seed,
                "data_set": row.data,
                "images": row.images,
                "rounds_finished": result.rounds,
                "is_personal": result.is_personal,
                **{metric: row.metric(seed, metric) for metric in metrics_of(table)},
                **_by_group(row, seed, values),
                **_terms(result.guarantee),
                "seconds": result.seconds.total,
                "upload_bytes": result.max_upload_bytes,
                "dropouts": result.dropouts,
                "weights_sha256": result.weights_sha256,
                "versions": " ".join(f"{k}={v}" for k, v in sorted(result.versions.items())),
            }


def _by_group(row: Row, seed: int, values: Iterable[tuple[str, str]]) -> dict[str, float | None]:
    """Return the main metric of one run for each of the table's centres and values of groups."""
    return {
        f"{name} {value or 'not stated'}": row.scores_by_value(seed, name).get(value)
        for name, value in values
    }


def _terms(guarantee: Guarantee | None) -> dict[str, object]:
    keys = ("epsilon", "delta", "unit", "adjacency", "against", "colluding", "simulation")
    # The prefix keeps these apart from an axis called epsilon.
    return {f"guarantee_{k}": None if guarantee is None else getattr(guarantee, k) for k in keys}


def _csv(lines: Iterable[Mapping[str, object]]) -> bytes:
    lines = list(lines)
    return csv_rows.write(
        [*map(list, lines[:1]), *(list(line.values()) for line in lines)]
    ).encode()
