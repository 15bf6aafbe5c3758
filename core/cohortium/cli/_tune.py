"""`cohortium tune`: a search for a study's settings inside its ε."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cohortium.cli import _printing
from cohortium.cli._options import Overrides
from cohortium.cli._sign_with import SignWith, print_signer, read_key
from cohortium.cli._stopping import stop_on_signal
from cohortium.cli._streams import json_text
from cohortium.privacy.guarantee import rounded_up
from cohortium.text import sanitize

if TYPE_CHECKING:
    from cohortium.roles.protocols import Observer
    from cohortium.tuning import CandidateScore, Price, TuningPlan, TuningResult


def tune(
    study: Annotated[Path, typer.Argument(help="A study file with a [tune].")],
    *,
    share: Annotated[
        float | None, typer.Option(help="ε of the search over that of the study; default 0.2.")
    ] = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the search; default runs/NAME-tuned.")
    ] = None,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Print the price, and run nothing.")
    ] = False,
    sign_with: SignWith = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only price and result.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Search a study's settings inside its ε, then run it with the best.

    Prints the ε of search and final run before the first round. Short runs with each candidate's
    settings are scored by a private evaluation at the sites, or by public validation images. To
    continue an interrupted search, give the same command again.

    Examples:
      cohortium tune study.toml --share 0.2 --plan
      cohortium tune study.toml --share 0.2
      cohortium tune study.toml --set privatizer.epsilon=3 --out runs/tuned-3
      cohortium tune study.toml --sign-with lead.pem
    """
    from cohortium import tuning as tunings
    from cohortium.storage.writable import check_directory_writable
    from cohortium.tuning.reading import ignored_keys

    key = read_key(sign_with)
    federation, tuning = tunings.read(study, overrides or [], share=share)
    if not as_json:
        for sentence in ignored_keys(study, overrides or []):
            typer.echo(sanitize(sentence), err=True)
    if plan_only:
        print_plan(tunings.plan_tuning(federation, tuning), as_json=as_json)
        return
    folder = out or Path("runs") / f"{study.stem}-tuned"
    check_directory_writable(folder)

    def planned(found: TuningPlan) -> None:
        if not as_json:
            print_plan(found, as_json=False)

    total = 0

    def scored(score: CandidateScore) -> None:
        nonlocal total
        total += 1
        typer.echo(sanitize(f"[{total}] {score.candidate}: {score}"), err=True)

    with stop_on_signal(folder, is_search=True) as stop:
        result = tunings.tune(
            federation,
            tuning,
            folder,
            observers=_observers(is_quiet=quiet or as_json),
            stop=stop,
            planned=planned,
            scored=scored,
            signing_key=key,
        )
    if as_json:
        typer.echo(json_text(result.as_json()))
    else:
        _print_result(result)
        print_signer(key)


def plan_file(study: Path, overrides: list[str] | None, *, as_json: bool) -> None:
    """Print the price of the search in a study file."""
    from cohortium import tuning as tunings

    federation, tuning = tunings.read(study, overrides or [])
    print_plan(tunings.plan_tuning(federation, tuning), as_json=as_json)


def print_plan(plan: TuningPlan, *, as_json: bool) -> None:
    """Print a search's price before its first round."""
    from rich.table import Table
    from rich.text import Text

    if as_json:
        from cohortium.tuning.plain import as_plain

        typer.echo(json_text(as_plain(plan)))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    count = f"{len(plan.drawn)}"
    if plan.number != "fixed":
        count += f", a secret {plan.number} number, of which ε counts {plan.counted}"
    table.add_row("candidates", Text(f"{count}, {plan.rounds} rounds each"))
    table.add_row("scored on", Text(plan.scored_on))
    for price in plan.prices:
        for label, value in _price_rows(price, plan):
            table.add_row(label, Text(value))
    if plan.number == "fixed":
        told = (
            "as for both: the theorem of Papernot and Steinke (2022) needs a secret random number "
            'of candidates, such as number = "poisson"'
        )
        table.add_row("final model alone", Text(told))
    console = _printing.console()
    console.print(table)
    for warning in plan.warnings:
        console.print(warning, markup=False, soft_wrap=True)


def _price_rows(price: Price, plan: TuningPlan) -> list[tuple[str, str]]:
    """Return label and text of each ε for one kind of images."""
    of = f"{price.images} images: "
    found = [(f"{of}search", f"ε = {rounded_up(price.search)}")]
    if price.final:
        found.append((f"{of}final run", f"ε = {rounded_up(price.final)}"))
    found.append((f"{of}both", f"{price}; it holds even for who sees every candidate"))
    if price.final_model is None:
        return found
    if math.isinf(price.final_model) or price.final_model >= price.together:
        told = (
            "as for both: the bound of Papernot and Steinke (2022) is no smaller here "
            f"({_shown(price.final_model)})"
        )
    else:
        told = (
            f"ε = {rounded_up(price.final_model)} at the same δ (Papernot and Steinke 2022, "
            f"{plan.number} number of candidates)"
        )
    return [*found, (f"{of}final model alone", told)]


def _shown(epsilon: float) -> str:
    return f"more than {'the budget' if math.isinf(epsilon) else rounded_up(epsilon)}"


def _print_result(result: TuningResult) -> None:
    from cohortium.tuning.scores import LOST

    final, folder = result.final, result.folder
    rows = [
        ("chosen", result.choice.chosen),
        ("guarantee", str(final.guarantee)),
        ("weights", final.weights_sha256[:16]),
        ("final run", str(folder / "final")),
        ("search", str(folder / "table.md")),
    ]
    if final.scores is not None:
        from cohortium.data.scores import metric_name

        name = final.scores.main_metric
        score = final.scores.metrics[name]
        told = "unknown" if score is None else f"{score:.2%}"
        rows.insert(1, (f"test {metric_name(name)}", told))
    if result.is_evaluation_lost:
        rows.append(("lost", LOST))
    for label, value in rows:
        typer.echo(sanitize(f"{label:>14}  {value}"))


def _observers(*, is_quiet: bool) -> list[Observer]:
    from cohortium.catalog import construction
    from cohortium.catalog.discovery import discover

    catalog = discover()
    if is_quiet or "progress" not in catalog.names("observer"):
        return []
    return [construction.build_part(catalog, "observer", {"name": "progress"}, where="the command")]
