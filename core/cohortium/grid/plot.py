"""Plot of a grid's table by cell, or along an axis."""

from __future__ import annotations

import io
import math
import textwrap
from typing import TYPE_CHECKING

from attrs import frozen

from cohortium.data.scores import metric_name
from cohortium.grid.rows import HOLDOUT_METRICS, headline_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.axes import Axes

    from cohortium.grid.cells import Grid
    from cohortium.grid.rows import Row

MIN_POINTS = 3
"""Fewest numbers on an axis for which a line is drawn."""


MAJORITY = "most frequent class alone"
"""Label of the accuracy that always predicting the most frequent class gives."""

MAX_TICKS = 8
"""Most values of an axis of which each gets a tick."""

MAX_GAP = 2.0
"""Largest distance of the most frequent class's line from the accuracies, in their own range.

Farther away, the line would leave the accuracies too little room. The axis's title states the
share instead.
"""

MAX_LINEAR = 20
"""Largest ratio of the numbers on an axis for which it is linear."""

MAX_TITLE = 48
"""Most characters in a line of an axis's title."""

MIN_RANGE = 1.0
"""Least range of accuracies, in percentage points, against which that distance is measured."""


def draw(grid: Grid, table: Sequence[Row]) -> bytes:
    """Draw an SVG of accuracies, with a dot per run.

    It shows mean ± standard deviation. If an axis has three numbers or more, it becomes the
    horizontal axis. Each combination of the other axes then gets a line. Otherwise each cell gets a
    line of its own. A dotted line marks the accuracy of a classifier that always predicts the most
    frequent class. Where that is far from all runs, the axis's title states it instead. Each data
    set has a panel, and no two share an axis. Equal tables give equal bytes.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    metric, majority = headline_of(table)
    panels = _panels([row for row in table if row.summary(metric) is not None], majority)
    heights = [4.2 if _numbers(grid, rows) else 1.2 + 0.32 * max(len(rows), 1) for rows in panels]
    with mpl.rc_context({"svg.hashsalt": "cohortium", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7.5, sum(heights)), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        grids = figure.subplots(
            len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights}
        )
        for axes, rows in zip(grids[:, 0], panels, strict=True):
            panel = _Panel(axes=axes, rows=rows, metric=metric, majority=majority)
            panel.draw(_numbers(grid, rows))
            if len(panels) > 1:
                axes.set_title(rows[0].data or "another data set", fontsize="medium")
        buffer = io.BytesIO()
        canvas.print_svg(buffer, metadata={"Date": None})  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def _panels(table: Sequence[Row], majority: str) -> list[list[Row]]:
    """Return the rows of each data set.

    Data sets of the same name may differ in their class balance, and then get separate panels.
    """
    found: dict[tuple[str, float | None], list[Row]] = {}
    for row in table:
        spread = row.summary(majority) if majority == "majority_share" else None
        share = None if spread is None else round(spread.mean, 9)
        found.setdefault((row.data, share), []).append(row)
    return list(found.values()) or [[]]


def _numbers(grid: Grid, table: Sequence[Row]) -> str:
    """Return the axis with the most numbers, if it has enough."""
    counts = {}
    for axis in grid.axes:
        labels = {row.cell.place[axis.name] for row in table}
        counts[axis.name] = sum(_number(label) is not None for label in labels)
    best = max(counts, key=lambda name: counts[name], default="")
    return best if counts.get(best, 0) >= MIN_POINTS else ""


def _number(label: str) -> float | None:
    try:
        number = float(label)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


@frozen(kw_only=True)
class _Panel:
    """One data set's part of the plot.

    Attributes:
        axes: The axes on which it is drawn.
        rows: Of the table.
        metric: The metric that is drawn.
        majority: Name of the most frequent class's share, which is drawn next to the metric.
    """

    axes: Axes
    rows: Sequence[Row]
    metric: str
    majority: str

    def draw(self, along: str) -> None:
        """Draw the panel.

        Args:
            along: The axis of numbers that is horizontal. If empty, there is none.
        """
        if along:
            self._draw_lines(along)
        else:
            self._draw_cells()
        self.axes.grid(alpha=0.3)

    @property
    def title(self) -> str:
        """Title of the accuracy axis."""
        if self.metric in HOLDOUT_METRICS:
            main = metric_name(self.rows[0].metrics[0])
            return f"{main} of the sites' own models on what they held out, %"
        images = self.rows[0].images if self.rows else "test"
        is_global = any(row.is_personal for row in self.rows)
        whose = " of the global model, which no site uses" if is_global else ""
        return f"{images} {metric_name(self.metric)}{whose}, %"

    def _accuracies(self, row: Row) -> tuple[float, float, list[float]]:
        """Return mean, standard deviation and every run's accuracy, in percent."""
        spread = row.summary(self.metric)
        assert spread is not None
        each = [100 * (row.metric(seed, self.metric) or 0.0) for seed in row.results]
        return 100 * spread.mean, 100 * (spread.standard_deviation or 0.0), each

    def _level(self) -> float | None:
        """Return the share of the most frequent class, in percent."""
        known = [spread.mean for row in self.rows if (spread := row.summary(self.majority))]
        return 100 * sum(known) / len(known) if known else None

    def _draw_cells(self) -> None:
        axes = self.axes
        for place, row in enumerate(self.rows):
            mean, deviation, each = self._accuracies(row)
            axes.errorbar(mean, place, xerr=deviation, fmt="o", color="C0", capsize=3)
            axes.scatter(each, [place] * len(each), color="C0", s=8, alpha=0.4)
        names = [row.cell.name.replace(",", ", ") for row in self.rows]
        axes.set_yticks(range(len(names)), names)
        axes.margins(y=0.1)
        axes.invert_yaxis()
        self._label(axes.set_xlabel, axes.axvline)

    def _label(self, write: Callable[[str], object], line: Callable[..., object]) -> None:
        """Write the title of the accuracy axis, and mark the most frequent class.

        Args:
            write: Sets the label of the accuracy axis.
            line: Draws a line across the plot at an accuracy.
        """
        title, level = textwrap.fill(self.title, MAX_TITLE), self._level()
        if level is not None:
            each = [value for row in self.rows for value in self._accuracies(row)[2]]
            if min(each) - level <= MAX_GAP * max(max(each) - min(each), MIN_RANGE):
                line(level, color="0.4", linestyle=":", linewidth=1, label=MAJORITY)
            else:
                title += f"\n({MAJORITY}: {level:.1f} %)"
        write(title)
        if self.axes.get_legend_handles_labels()[1]:
            self.axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))

    def _draw_lines(self, along: str) -> None:
        """Draw lines along an axis of numbers.

        A label that is no number, such as "no privacy", becomes a line across the plot.
        """
        axes = self.axes
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            others = {k: v for k, v in row.cell.place.items() if k != along}
            groups.setdefault(", ".join(f"{k}={v}" for k, v in others.items()), []).append(row)
        for n, (name, group) in enumerate(groups.items()):
            self._draw_line(along, name, group, f"C{n % 10}")
        labels = [row.cell.place[along] for row in self.rows]
        ticks = {x: label for label in labels if (x := _number(label)) is not None}
        if min(ticks) > 0 and max(ticks) > MAX_LINEAR * min(ticks):
            axes.set_xscale("log")
            axes.minorticks_off()
        if len(ticks) <= MAX_TICKS:
            axes.set_xticks(list(ticks), list(ticks.values()))
        axes.set_xlabel(along)
        self._label(axes.set_ylabel, axes.axhline)

    def _draw_line(self, along: str, name: str, group: Sequence[Row], color: str) -> None:
        axes, points = self.axes, []
        for row in group:
            x, (mean, deviation, each) = _number(row.cell.place[along]), self._accuracies(row)
            if x is None:
                label = ", ".join(filter(None, [name, f"{along}={row.cell.place[along]}"]))
                axes.axhline(mean, color=color, linestyle="--", linewidth=1, label=label)
                continue
            points.append((x, mean, deviation))
            axes.scatter([x] * len(each), each, color=color, s=8, alpha=0.4)
        if points:
            xs, means, deviations = zip(*sorted(points), strict=True)
            axes.errorbar(xs, means, yerr=deviations, fmt="o-", color=color, capsize=3, label=name)
