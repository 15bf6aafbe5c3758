"""The plots of a report: what is drawn, and the words for those who cannot see it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohortium.reporting.figures import Axis, Line, Plot
from cohortium.reporting.wording import bound, decimal, percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cohortium.history import Cell
    from cohortium.reporting.reading import Record

TONES = 8
"""Colours of the style sheet that can be told apart."""


def learning(record: Record) -> Plot | None:
    """Accuracy and AUC by round, or None where nothing was scored."""
    rows = [row for row in record.rows if row["accuracy"] is not None]
    lines = tuple(
        Line(name=name, points=points, tone=tone, label=f"{name} {shown}")
        for tone, (name, key) in enumerate((("accuracy", "accuracy"), ("AUC", "auc")), start=1)
        if (points := _points(rows, key))
        for shown in (percent(points[-1][1]) if key == "accuracy" else decimal(points[-1][1]),)
    )
    if not lines:
        return None
    last = ", ".join(line.label for line in lines)
    return Plot(
        title="Accuracy and AUC on the validation images by round",
        summary=f"{len(rows)} rounds; at the end {last}.",
        x=Axis.rounds(_last(record)),
        y=Axis.over([y for line in lines for _, y in line.points], most=1.0),
        lines=lines,
        hints=tuple(
            (
                float(row["round"] or 0),
                f"{row['round']}: accuracy {percent(row['accuracy'])}, AUC {decimal(row['auc'])}",
            )
            for row in rows
        ),
    )


def spending(record: Record) -> Plot | None:
    """ε by round beside its budget, or None without privacy."""
    guarantee = record.guarantee
    rows = [row for row in record.rows if row["epsilon"] is not None]
    if guarantee is None or not rows:
        return None
    points = _points(rows, "epsilon")
    spent = points[-1][1]
    return Plot(
        title="ε spent by round, beside the budget of the whole run",
        summary=f"{bound(spent)} of {bound(guarantee.epsilon)} spent after {len(rows)} rounds.",
        x=Axis.rounds(_last(record)),
        y=Axis.over((0.0, guarantee.epsilon * 1.08)),
        lines=(Line(name="ε", points=points, tone=1, label=f"spent {bound(spent)}"),),
        limit=(guarantee.epsilon, f"budget {bound(guarantee.epsilon)}"),
        hints=tuple(
            (float(row["round"] or 0), f"{row['round']}: ε = {bound(row['epsilon'])}")
            for row in rows
        ),
    )


def side_by_side(records: Sequence[Record], names: Sequence[str], key: str) -> Plot | None:
    """One quantity by round, a line for each run; None where no run has it."""
    shares = key == "accuracy"
    lines = tuple(
        Line(
            name=name,
            points=points,
            tone=number % TONES + 1,
            label=f"{name}  {percent(points[-1][1]) if shares else bound(points[-1][1])}",
        )
        for number, (record, name) in enumerate(zip(records, names, strict=True))
        if (points := _points(record.rows, key))
    )
    if not lines:
        return None
    what = "Accuracy on the validation images" if shares else "ε spent"
    numbers = [y for line in lines for _, y in line.points]
    return Plot(
        title=f"{what} by round, run by run",
        summary="At the end " + ", ".join(line.label for line in lines) + ".",
        x=Axis.rounds(max(x for line in lines for x, _ in line.points)),
        y=Axis.over(numbers, most=1.0) if shares else Axis.over((0.0, *numbers)),
        lines=lines,
    )


def _points(rows: Sequence[dict[str, Cell]], key: str) -> tuple[tuple[float, float], ...]:
    return tuple(
        (float(row["round"] or 0), float(value))
        for row in rows
        if (value := row.get(key)) is not None
    )


def _last(record: Record) -> float:
    done = max((float(row["round"] or 0) for row in record.rows), default=1.0)
    return max(done, float(record.terms.rounds))
