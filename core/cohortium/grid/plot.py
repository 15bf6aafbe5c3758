"""A grid's table as a picture: accuracy by cell, or along an axis of numbers."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from cohortium.grid.cells import Grid
    from cohortium.grid.summary import Row

FEWEST = 3
"""Numbers on an axis that make a line worth drawing."""


MOST_TICKS = 8
"""Values of an axis that are all written below it."""


def draw(grid: Grid, table: Sequence[Row]) -> bytes:
    """An SVG picture: mean ± standard deviation of accuracy, and every run as a dot.

    Where an axis has three numbers or more it becomes the picture's own, with a line for each
    combination of the others; else each cell has a line to itself.  Equal tables give equal bytes.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    table = [row for row in table if row.spread("accuracy") is not None]
    along = _numbers(grid, table)
    height = 4.2 if along else 1.2 + 0.32 * max(len(table), 1)
    with mpl.rc_context({"svg.hashsalt": "cohortium", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7.5, height), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        if along:
            _draw_lines(axes, along, table)
        else:
            _draw_cells(axes, table)
        axes.grid(alpha=0.3)
        buffer = io.BytesIO()
        canvas.print_svg(buffer, metadata={"Date": None})  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def _numbers(grid: Grid, table: Sequence[Row]) -> str:
    """The axis with the most numbers among the cells of `table`, if it has enough of them."""
    counts = {}
    for axis in grid.axes:
        labels = {row.cell.place[axis.name] for row in table}
        counts[axis.name] = sum(_number(label) is not None for label in labels)
    best = max(counts, key=lambda name: counts[name], default="")
    return best if counts.get(best, 0) >= FEWEST else ""


def _number(label: str) -> float | None:
    try:
        return float(label)
    except ValueError:
        return None


def _accuracies(row: Row) -> tuple[float, float, list[float]]:
    """Mean, standard deviation and every run's, in percent."""
    spread = row.spread("accuracy")
    assert spread is not None
    each = [100 * (row.figure(seed, "accuracy") or 0.0) for seed in row.results]
    return 100 * spread.mean, 100 * (spread.deviation or 0.0), each


def _images(table: Sequence[Row]) -> str:
    return table[0].images if table else "test"


def _draw_cells(axes: Axes, table: Sequence[Row]) -> None:
    for place, row in enumerate(table):
        mean, deviation, each = _accuracies(row)
        axes.errorbar(mean, place, xerr=deviation, fmt="o", color="C0", capsize=3)
        axes.scatter(each, [place] * len(each), color="C0", s=8, alpha=0.4)
    axes.set_yticks(range(len(table)), [row.cell.name.replace(",", ", ") for row in table])
    axes.invert_yaxis()
    axes.set_xlabel(f"{_images(table)} accuracy, %")


def _draw_lines(axes: Axes, along: str, table: Sequence[Row]) -> None:
    """Labels that are no numbers (no privacy, say) become lines across the picture."""
    groups: dict[str, list[Row]] = {}
    for row in table:
        others = {k: v for k, v in row.cell.place.items() if k != along}
        groups.setdefault(", ".join(f"{k}={v}" for k, v in others.items()), []).append(row)
    for n, (name, group) in enumerate(groups.items()):
        color = f"C{n % 10}"
        points = []
        for row in group:
            x, (mean, deviation, each) = _number(row.cell.place[along]), _accuracies(row)
            if x is None:
                label = ", ".join(filter(None, [name, f"{along}={row.cell.place[along]}"]))
                axes.axhline(mean, color=color, linestyle="--", linewidth=1, label=label)
                continue
            points.append((x, mean, deviation))
            axes.scatter([x] * len(each), each, color=color, s=8, alpha=0.4)
        if points:
            xs, means, deviations = zip(*sorted(points), strict=True)
            axes.errorbar(xs, means, yerr=deviations, fmt="o-", color=color, capsize=3, label=name)
    if any(groups) or len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(fontsize="small")
    labels = [row.cell.place[along] for row in table]
    ticks = {x: label for label in labels if (x := _number(label)) is not None}
    if len(ticks) <= MOST_TICKS:
        axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_xlabel(along)
    axes.set_ylabel(f"{_images(table)} accuracy, %")
