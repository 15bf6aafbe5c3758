"""Plots of a report.

Each has a description for people who cannot see it.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from cohortium.data.scores import metric_name
from cohortium.reporting.figures import Axis, Line, Plot
from cohortium.reporting.wording import bound, decimal, metric, percent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cohortium.data.scores import Scores
    from cohortium.reporting.reading import Record
    from cohortium.runs.history import Cell

TONES = 8
"""Colours of the style sheet that people can distinguish."""

MAX_LABEL = 12
"""Most characters of a class' name at the end of its line."""


def learning(record: Record) -> Plot | None:
    """Plot the main metric and the AUC by round, or return None without scores."""
    main = record.main_metric
    keys = (main,) if main == "auc" else (main, "auc")
    rows = [row for row in record.rows if row.get(main) is not None]
    lines = tuple(
        Line(name=metric_name(key), points=points, tone=tone, label=f"{metric_name(key)} {shown}")
        for tone, key in enumerate(keys, start=1)
        if (points := _points(rows, key))
        for shown in (metric(points[-1][1], key),)
    )
    if not lines:
        return None
    last = ", ".join(line.label for line in lines)
    majority = _majority(record)
    whose = " of the global network" if record.is_personal else ""
    drawn = " and ".join(line.name for line in lines)
    return Plot(
        title=f"{drawn[0].upper()}{drawn[1:]}{whose} on the validation images by round",
        summary=f"{len(rows)} rounds; at the end {last}{_beside(majority)}.",
        x=Axis.rounds(_last(record)),
        y=Axis.over([y for line in lines for _, y in line.points] + _level(majority), most=1.0),
        lines=lines,
        limit=majority,
        hints=tuple(
            (
                float(row["round"] or 0),
                f"{row['round']}: "
                + ", ".join(
                    f"{metric_name(key)} {metric(row.get(key), key)}" for key in keys if key in row
                ),
            )
            for row in rows
        ),
    )


def roc(scores: Scores) -> Plot | None:
    """Plot the ROC curves of the classes with the lowest AUC, or return None without any."""
    areas = {row.name: row.metrics.get("auc") or 0.0 for row in scores.per_class}
    worst = sorted(scores.curves, key=lambda curve: areas.get(curve.name, 0.0))[:TONES]
    if not worst:
        return None
    lines = tuple(
        Line(
            name=curve.name,
            points=curve.points,
            tone=number,
            label=f"{_short(curve.name)} {decimal(areas.get(curve.name))}",
        )
        for number, curve in enumerate(worst, start=1)
    )
    unit = Axis.over((0.0, 1.0), most=1.0)
    shown = ", ".join(line.label for line in lines)
    return Plot(
        title="Share of a class that is found, by share of the others that is called so",
        summary=f"Areas under the curves: {shown}.",
        x=unit,
        y=unit,
        lines=lines,
        unit="false positives",
        height=260.0,
    )


def spending(record: Record) -> Plot | None:
    """Plot ε by round against its budget, or return None without privacy."""
    guarantee = record.guarantee
    rows = [row for row in record.rows if row["epsilon"] is not None]
    if guarantee is None or not rows:
        return None
    points = _points(rows, "epsilon")
    spent = points[-1][1]
    title = "ε spent by round, and the budget of the whole run"
    if guarantee.simulation:
        title = "ε that secret noise would spend by round, and the budget of the whole run"
    label = bound(spent) if guarantee.simulation else f"spent {bound(spent)}"
    return Plot(
        title=title,
        summary=f"{bound(spent)} of {bound(guarantee.epsilon)} after {len(rows)} rounds.",
        x=Axis.rounds(_last(record)),
        y=Axis.over((0.0, guarantee.epsilon * 1.08)),
        lines=(Line(name="ε", points=points, tone=1, label=label),),
        limit=(guarantee.epsilon, f"budget {bound(guarantee.epsilon)}"),
        hints=tuple(
            (float(row["round"] or 0), f"{row['round']}: ε = {bound(row['epsilon'])}")
            for row in rows
        ),
    )


def accuracies(records: Sequence[Record], names: Sequence[str]) -> tuple[tuple[str, Plot], ...]:
    """Plot the main metric by round, a line for each run.

    Returns:
        The name of each data set, with its plot.
    """
    groups: dict[tuple[str, float | None, str], list[tuple[Record, str]]] = {}
    for record, name in zip(records, names, strict=True):
        same = (record.data, record.majority_share, record.main_metric)
        groups.setdefault(same, []).append((record, name))
    tones = {name: number for number, name in enumerate(names)}
    found = []
    for (data, _, _), group in groups.items():
        runs, called = [record for record, _ in group], [name for _, name in group]
        plot = side_by_side(runs, called, runs[0].main_metric, tones)
        found += [(data, plot)] if plot is not None else []
    return tuple(found)


def side_by_side(
    records: Sequence[Record],
    names: Sequence[str],
    key: str,
    tones: Mapping[str, int] = MappingProxyType({}),
) -> Plot | None:
    """Plot one quantity by round, a line for each run.

    Args:
        records: The runs. For accuracies, all of one data set.
        names: Of the lines.
        key: The quantity's key.
        tones: Colours by name, for lines whose colour is not that of their order.

    Returns:
        The plot, or None if no run has the quantity.
    """
    shares = key != "epsilon"
    majority = _majority(records[0]) if shares else None
    lines = tuple(
        Line(
            name=name,
            points=points,
            tone=tones.get(name, number) % TONES + 1,
            label=f"{name}  {percent(points[-1][1]) if shares else bound(points[-1][1])}",
        )
        for number, (record, name) in enumerate(zip(records, names, strict=True))
        if (points := _points(record.rows, key))
    )
    if not lines:
        return None
    drawn = metric_name(key)
    what = f"{drawn[0].upper()}{drawn[1:]} on the validation images" if shares else "ε spent"
    numbers = [y for line in lines for _, y in line.points] + _level(majority)
    last = ", ".join(line.label for line in lines)
    return Plot(
        title=f"{what} by round, run by run",
        summary=f"At the end {last}{_beside(majority)}.",
        x=Axis.rounds(max(x for line in lines for x, _ in line.points)),
        y=Axis.over(numbers, most=1.0) if shares else Axis.over((0.0, *numbers)),
        lines=lines,
        limit=majority,
    )


def _short(name: str) -> str:
    """Return a class' name, or its beginning and an ellipsis."""
    return name if len(name) <= MAX_LABEL else f"{name[: MAX_LABEL - 1].rstrip()}…"


def _majority(record: Record) -> tuple[float, str] | None:
    """Return the most frequent class's share, and its words.

    The share is the accuracy of always predicting that class.
    """
    share = record.majority_share
    return None if share is None else (share, f"most frequent class alone {percent(share)}")


def _level(majority: tuple[float, str] | None) -> list[float]:
    return [] if majority is None else [majority[0]]


def _beside(majority: tuple[float, str] | None) -> str:
    return "" if majority is None else f"; {majority[1]}"


def _points(rows: Sequence[dict[str, Cell]], key: str) -> tuple[tuple[float, float], ...]:
    return tuple(
        (float(row["round"] or 0), float(value))
        for row in rows
        if (value := row.get(key)) is not None
    )


def _last(record: Record) -> float:
    done = max((float(row["round"] or 0) for row in record.rows), default=1.0)
    return max(done, float(record.terms.rounds))
