"""`cohortium statistics`: facts about the hospitals' images, released with a guarantee."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tomli_w
import typer

from cohortium.cli import _printing
from cohortium.cli._estimates import print_measured
from cohortium.cli._options import Overrides, Study, federation_of
from cohortium.cli._stopping import stop_on_signal
from cohortium.cli._streams import json_text

if TYPE_CHECKING:
    from cohortium.runs.result import Result

GAUSSIAN = "analytic gaussian"
"""Accountant of Gaussian noise on sums of all images."""


def statistics(
    study: Study = None,
    *,
    overrides: Overrides = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Its ε; by default that of the study.")
    ] = None,
    delta: Annotated[
        float | None, typer.Option(help="Its δ; by default that of the study.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the record; default runs/statistics-DATE-TIME.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print result.json.")] = False,
) -> None:
    """Release mean, deviation and labels of the training images before training.

    The hospitals send one noised sum, which the study's aggregator adds up and their ledgers
    charge. Prints the tables of a study whose model uses the values, and whose guarantee covers
    both.

    Examples:
      cohortium statistics study.toml --epsilon 0.5
    """
    from cohortium.study.evaluation_study import statistics_study

    federation = federation_of(study, overrides, is_quiet=as_json)
    measuring = statistics_study(federation, epsilon, delta)
    now = dt.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    folder = out or Path("runs") / f"statistics-{now}"
    with stop_on_signal(folder) as stop:
        result = measuring.run(folder, stop=stop)
    if as_json:
        typer.echo(json_text(result.as_json()))
        return
    assert result.measured is not None
    print_measured(result)
    console = _printing.console()
    if any(each.metric == "deviation" and not each.noise_low for each in result.measured.estimates):
        console.print("The noise hides a deviation, so no study should use it; raise --epsilon.")
        return
    console.print("\nfor the study that uses them:\n", style="bold")
    console.print(_tables(result), soft_wrap=True)


def _tables(result: Result) -> str:
    """Return the tables of a study that uses the released values."""
    assert result.measured is not None
    found: dict[str, list[float]] = {"mean": [], "deviation": []}
    for each in result.measured.estimates:
        if each.metric in found:
            found[each.metric].append(round(min(max(each.value or 0.0, 0.0001), 1.0), 4))
    tables: dict[str, object] = {"model": {"name": "standardized", **found}}
    guarantee = result.guarantee
    # The accounting of another mechanism's noise needs more than its size.
    if guarantee is not None and guarantee.accountant == GAUSSIAN:
        tables["prior"] = {
            "noise_multiplier": guarantee.noise_multiplier,
            "unit": guarantee.unit,
            "adjacency": guarantee.adjacency,
            "against": guarantee.against,
        }
    text = tomli_w.dumps(tables)
    return text.replace(
        "[prior]", "# [model.model] names the model that receives the images.\n\n[prior]", 1
    )
