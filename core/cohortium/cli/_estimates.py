"""Tables of estimates, and of their expected intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohortium.cli import _printing
from cohortium.data.scores import DECIMALS, metric_name

if TYPE_CHECKING:
    from rich.console import Console

    from cohortium.data.estimates import Estimate
    from cohortium.runs.evaluation_forecast import EvaluationForecast
    from cohortium.runs.result import Result

NO_PRIVACY = "none: nothing here is private"

HIDDEN = "hidden by the noise"
"""Text in place of a score whose noise leaves half of its range open."""


def print_forecast(console: Console, forecast: EvaluationForecast) -> None:
    """Print the expected intervals of an evaluation."""
    from rich.table import Table

    guarantee = forecast.guarantee
    console.print("\nevaluation at the sites", style="bold")
    table = Table(show_header=False, box=None, pad_edge=False)
    if forecast.releases > 1:
        table.add_row("evaluations", f"{forecast.releases:,}, which one guarantee covers")
    table.add_row("guarantee", "none: the sum is exact" if guarantee is None else str(guarantee))
    counted = ""
    if forecast.rows != forecast.examples:
        counted = f", of which one image of each of {forecast.rows:,} patients counts"
    table.add_row("test images", f"{forecast.examples:,}{counted}")
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
        table.add_row(
            metric_name(each.metric),
            each.group or each.name or "all",
            HIDDEN if each.is_hidden else f"± {each.noise:.3f}",
            "" if each.is_hidden else f"± {each.both:.3f}",
        )
    console.print(table)


def evaluation_rows(result: Result) -> list[tuple[str, str]]:
    """Return label and text of the main score at the sites and its price, if it was measured."""
    evaluation = result.evaluation
    if evaluation is None or evaluation.measured is None:
        return []
    measured = evaluation.measured
    main = measured.estimates[0]
    score = f"{_value(main)} (95 %: {_interval(main)})"
    price = str(evaluation.guarantee or NO_PRIVACY)
    return [
        (f"sites' {metric_name(main.metric)}", HIDDEN if main.is_hidden else score),
        ("evaluation", f"{price}; for the test images of {measured.contributors} sites"),
    ]


def print_measured(result: Result) -> None:
    """Print the estimates of a result, with their guarantee."""
    from rich.table import Table

    measured = result.measured
    assert measured is not None
    table = Table("score", "of", "value", "95 % interval", box=None, pad_edge=False)
    for each in measured.estimates:
        of = ", ".join(filter(None, (each.group, each.name))) or "all"
        told = ("", HIDDEN) if each.is_hidden else (_value(each), _interval(each))
        table.add_row(metric_name(each.metric), of, *told)
    console = _printing.console()
    console.print(table)
    declared = f"declared test images: {measured.examples:,}"
    for line in (
        f"guarantee: {result.guarantee or NO_PRIVACY}",
        f"sites: {measured.contributors} of {result.sites}; {declared}",
        f"record: {result.folder}",
    ):
        console.print(line, soft_wrap=True)


def _value(estimate: Estimate) -> str:
    return "unknown" if estimate.value is None else _number(estimate, estimate.value)


def _interval(estimate: Estimate) -> str:
    return f"{_number(estimate, estimate.low)} to {_number(estimate, estimate.high)}"


def _number(estimate: Estimate, value: float) -> str:
    if estimate.highest is None:
        return f"{value:,.0f}"
    return f"{value:.3f}" if estimate.metric in DECIMALS else f"{value:.1%}"
