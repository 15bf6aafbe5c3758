"""`cohortium evaluate`: the scores of a trained model on the sites' own test images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import attrs
import typer

from cohortium.cli._estimates import print_measured
from cohortium.cli._options import Overrides, RunFolder, federation_of
from cohortium.cli._sign_with import SignWith, print_signer, read_key
from cohortium.cli._stopping import stop_on_signal
from cohortium.cli._streams import json_text
from cohortium.errors import RequestError, StoppedError

if TYPE_CHECKING:
    from cohortium.federation import Federation
    from cohortium.roles.protocols import Observer
    from cohortium.study.measurement import EvaluationPlan


def evaluate(
    folder: RunFolder,
    *,
    epsilon: Annotated[float | None, typer.Option(help="ε of the evaluation.")] = None,
    delta: Annotated[float | None, typer.Option(help="δ of the evaluation.")] = None,
    part: Annotated[
        list[str] | None, typer.Option(help="Part of the scores; may be repeated. None: all.")
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(help="Column of groups, as `site`, to score each group; may be repeated."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the record; default DIR/evaluation.")
    ] = None,
    study: Annotated[
        Path | None, typer.Option(help="Study whose sites evaluate; default that of the run.")
    ] = None,
    overrides: Overrides = None,
    sign_with: SignWith = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only the scores.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print result.json.")] = False,
) -> None:
    """Evaluate the model of a finished run at the sites.

    The sites score the model on their own test images, and release one noised sum. The privacy that
    it costs is charged to the test images. A second evaluation is charged again. To continue an
    interrupted evaluation, give the same command again.

    Examples:
      cohortium evaluate runs/first --epsilon 1 --delta 1e-5
      cohortium evaluate runs/first --part accuracy --by site --json
      cohortium evaluate runs/first --study other.toml --out runs/first-elsewhere
      cohortium evaluate runs/first --epsilon 1 --delta 1e-5 --sign-with lead.pem
    """
    from cohortium.runs.personal_mark import refuse_personal
    from cohortium.runs.result import EVALUATION
    from cohortium.runs.resume_command import deployment_engine
    from cohortium.runs.run_directory import study_path

    refuse_personal(folder, purpose="evaluated at other sites")
    is_quiet = quiet or as_json
    key = read_key(sign_with)
    engine = None if study else deployment_engine(study_path(folder).parent)
    if engine is not None:
        command = engine.coordinator_command(evaluate=str(folder.absolute()))
        raise RequestError(
            f"the run in {folder} is of a deployment, whose engine starts the coordinator; "
            f"evaluate its model with `{command}`."
        )
    federation = federation_of(study or study_path(folder), overrides, is_quiet=is_quiet)
    place = folder / EVALUATION if out is None else out
    try:
        with stop_on_signal(place) as stop:
            result = federation.evaluate(
                folder,
                _plan(federation, epsilon=epsilon, delta=delta, parts=part, by=by),
                out=place,
                observers=_observers(federation, is_quiet=is_quiet),
                stop=stop,
                signing_key=key,
            )
    except StoppedError as error:
        # `cohortium resume` would not know the weights before the first checkpoint.
        raise StoppedError(
            "the evaluation was stopped; give the same command again to continue it."
        ) from error
    if as_json:
        typer.echo(json_text(result.as_json()))
    else:
        print_measured(result)
        print_signer(key)


def _plan(
    federation: Federation,
    *,
    epsilon: float | None,
    delta: float | None,
    parts: list[str] | None,
    by: list[str] | None,
) -> EvaluationPlan | None:
    """Return the study's evaluation with the options, or None without any."""
    from cohortium.study.measurement import EvaluationPlan

    options = {"epsilon": epsilon, "delta": delta, "parts": parts, "by": by}
    given = {name: value for name, value in options.items() if value not in (None, [])}
    if not given:
        return federation.evaluation
    changes: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in given.items()
    }
    try:
        return attrs.evolve(federation.evaluation or EvaluationPlan(), **changes)
    except ValueError as error:
        raise RequestError(f"the evaluation: {error}.") from error


def _observers(federation: Federation, *, is_quiet: bool) -> list[Observer]:
    from cohortium.catalog import construction
    from cohortium.catalog.discovery import discover

    if is_quiet or "progress" in federation.observers:
        return []
    catalog = discover()
    if "progress" not in catalog.names("observer"):
        return []
    return [construction.build_part(catalog, "observer", {"name": "progress"}, where="the command")]
