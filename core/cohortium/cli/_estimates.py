"""Tables of estimates, and of their expected intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohortium.data.scores import metric_name
from cohortium.text import sanitize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from cohortium.data.estimates import Estimate
    from cohortium.privacy.guarantee import Guarantee
    from cohortium.runs.evaluation_forecast import EvaluationForecast


def print_forecast(console: Console, forecast: EvaluationForecast) -> None:
    """Print the expected intervals of an evaluation."""
    from rich.table import Table

    guarantee = forecast.guarantee
    console.print("\nevaluation at the sites", style="bold")
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("guarantee", "none: the sum is exact" if guarantee is None else str(guarantee))
    table.add_row("test images", f"{forecast.examples:,}")
    table.add_row("values in the sum", f"{forecast.cells:,}")
    table.add_row("noise on each value", f"{forecast.noise:.3g}")
    table.add_row(
        "smallest group that can be told",
        "none: the noise hides even all images"
        if forecast.smallest_group is None
        else f"{forecast.smallest_group:,} images",
    )
    console.print(table)
    console.print("expected 95 % intervals, if the images spread evenly:")
    table = Table(box=None, pad_edge=False)
    table.add_column("score")
    table.add_column("of")
    table.add_column("noise alone", justify="right")
    table.add_column("with sampling", justify="right")
    for each in forecast.intervals:
        hidden = "hidden by the noise"
        table.add_row(
            metric_name(each.metric),
            sanitize(each.group or each.name or "all"),
            hidden if each.is_hidden else f"± {each.noise:.3f}",
            "" if each.is_hidden else f"± {each.both:.3f}",
        )
    console.print(table)


def print_estimates(
    console: Console, estimates: Sequence[Estimate], guarantee: Guarantee | None
) -> None:
    """Print estimates with their intervals, and the guarantee that covers them."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("score")
    table.add_column("of")
    table.add_column("estimate", justify="right")
    table.add_column("95 % interval", justify="right")
    for each in estimates:
        is_count = each.highest is None
        shown = [
            f"{value:,.0f}" if is_count else f"{value:.3f}"
            for value in (each.value or 0.0, each.low, each.high)
        ]
        table.add_row(
            metric_name(each.metric),
            sanitize(each.group or each.name or "all"),
            "–" if each.is_hidden else shown[0],
            "hidden by the noise" if each.is_hidden else f"{shown[1]} to {shown[2]}",
        )
    console.print(table)
    promise = "none: the sums are exact" if guarantee is None else str(guarantee)
    console.print(f"guarantee  {promise}", markup=False, soft_wrap=True)
