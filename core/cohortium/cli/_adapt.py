"""`cohortium adapt`: a trained model, fine-tuned at a hospital, where it stays."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cohortium.cli import _completion
from cohortium.cli._options import RunFolder
from cohortium.cli._personal import warn_personal
from cohortium.cli._use import Weights
from cohortium.data.scores import metric_name
from cohortium.errors import RequestError
from cohortium.text import sanitize

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cohortium.data.splits import Splits
    from cohortium.inference.classifier import Classifier
    from cohortium.inference.personal import Adaptation
    from cohortium.learning.fine_tuning import FineTuning
    from cohortium.learning.kept_features import FeatureFolder


def adapt(
    folder: RunFolder,
    site: Annotated[Path | None, typer.Argument(help="The hospital's site file.")] = None,
    *,
    out: Annotated[Path, typer.Option(help="A new folder for the model, which stays here.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="dataset.key=value: the hospital's images, without a site file; may be repeated.",
            autocompletion=_completion.overrides,
        ),
    ] = None,
    weights: Weights = "last",
    state: Annotated[
        Path | None,
        typer.Option(help="The site's file of the trainer's state; default that of the site file."),
    ] = None,
    learn: Annotated[
        Literal["all", "head"], typer.Option(help="What learns: all layers, or the last one.")
    ] = "all",
    epochs: Annotated[int, typer.Option(help="Most passes over the images.")] = 10,
    learning_rate: Annotated[float, typer.Option("--rate", help="Learning rate of Adam.")] = 1e-3,
    batch_size: Annotated[int, typer.Option(help="Images in a batch.")] = 32,
    pull: Annotated[float, typer.Option(help="Strength of a pull towards the start.")] = 0.0,
    folds: Annotated[
        int, typer.Option(help="Parts of the images, each judged by models of the others.")
    ] = 5,
    margin: Annotated[
        float, typer.Option(help="Standard errors by which to be better than a model alone.")
    ] = 1.0,
    share: Annotated[
        float, typer.Option(help="Weight of the fine-tuned model in a mix with the one alone.")
    ] = 0.25,
    alone: Annotated[
        bool, typer.Option("--alone/--no-alone", help="Let a model trained alone compete.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Seed of the folds and the batches.")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only the result.")] = False,
) -> None:
    """Choose a model for this hospital: a run's, fine-tuned, or trained alone.

    The result is for this hospital alone: no noise protects the images. Nothing is sent, and no
    ledger is charged. Candidates are the run's model before and after each epoch, a model that the
    hospital trains alone, and a mix of the two. Cross-validation over the hospital's own images
    compares them. The model trained alone is the result, unless another is better by a margin. If
    it is worse than guessing, it needs no margin to be replaced.

    Examples:
      cohortium adapt runs/first site.toml --out ours
      cohortium adapt runs/first site.toml --out ours --learn head --no-alone
      cohortium adapt runs/first --set dataset.name=npz --set dataset.path=own.npz --out ours
    """
    from cohortium.inference.adapt import adapt as adapt_model
    from cohortium.inference.adapt import check_adaptable
    from cohortium.inference.classifier import Classifier
    from cohortium.runs.launch import run_one_site

    recipe = _recipe(
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        learn=learn,
        pull=pull,
        folds=folds,
        margin=margin,
        share=share,
    )
    if not 0 <= seed < 1 << 63:
        raise RequestError(f"--seed is {seed}; give a number from 0 to {(1 << 63) - 1}.")
    classifier = Classifier.open(folder, weights)
    check_adaptable(classifier, out)
    splits, features, found = _images(classifier, site, overrides or [])
    if state is not None or (found is not None and weights == "last"):
        classifier = Classifier.open(folder, weights, state=state or found)
        if not quiet:
            typer.echo(
                sanitize(f"starts from the site's own network in {state or found}"), err=True
            )
    done = adapt_model(
        classifier,
        splits,
        out,
        recipe,
        seed=seed,
        run=run_one_site if alone else None,
        features=features,
        progress=None if quiet else _tell_fold,
    )
    warn_personal(done.personal)
    for line in _summary(done.adaptation):
        typer.echo(line)
    typer.echo(sanitize(f"the model stays here: {out}"))


def _recipe(**values: Any) -> FineTuning:
    """Return the recipe of the options.

    Raises:
        RequestError: One is outside its range.
    """
    from cohortium.learning.fine_tuning import FineTuning

    options = {"learning_rate": "--rate"}
    try:
        return FineTuning(**values)
    except ValueError as error:
        told = str(error.args[0] if error.args else error)
        for name in values:
            told = told.replace(f"'{name}'", options.get(name, f"--{name.replace('_', '-')}"))
        raise RequestError(f"{told.rstrip('.')}.") from error


def _images(
    classifier: Classifier, site: Path | None, overrides: list[str]
) -> tuple[Splits, FeatureFolder | None, Path | None]:
    """Return the hospital's images, its folder of features, and its file of the trainer's state.

    Raises:
        RequestError: Neither a site file nor images are named, or both are.
        CohortiumError: The site file or the images are unusable.
    """
    if (site is None) == (not overrides):
        raise RequestError(
            "name the hospital's images: give its site file, or --set dataset.name=… with the "
            "data set's other keys."
        )
    if site is not None:
        from cohortium.deployment.adapt_at_site import find_state
        from cohortium.deployment.site_config import SiteConfig

        site_config = SiteConfig.read(site)
        images = site_config.load_images().train
        return images, site_config.feature_folder, find_state(site_config, classifier.study)
    return _named_images(classifier, overrides), None, None


def _named_images(classifier: Classifier, overrides: list[str]) -> Splits:
    """Return the images of the run's data set with changes."""
    from cohortium.catalog.construction import build_part
    from cohortium.catalog.discovery import discover
    from cohortium.catalog.part_results import load_splits
    from cohortium.roles.protocols import Dataset
    from cohortium.study.layered_tables import merge
    from cohortium.study.study_file import override_layers

    tables = {"dataset": classifier.study.get("dataset", {})}
    for layer in override_layers(overrides)[0]:
        odd = next((name for name in layer.changes if name != "dataset"), None)
        if odd is not None:
            raise RequestError(
                f"{layer.where}: only [dataset] names the hospital's images; the other options "
                "have names of their own."
            )
        tables = dict(merge(tables, layer.changes, where=layer.where))
    dataset: Dataset = build_part(discover(), "dataset", tables["dataset"], where="--set")
    return load_splits(dataset)


def _tell_fold(fold: int, folds: int) -> None:
    """Print that a fold is done."""
    typer.echo(f"fold {fold}/{folds}", err=True)


def _summary(found: Adaptation) -> Iterator[str]:
    """Yield the lines of the result."""
    rows = [
        (
            "chosen" if each is found.choice else "",
            found.describe(each),
            f"{each.score:.2%}",
            f"{each.loss:.4f}",
        )
        for each in found.compared
    ]
    rows.insert(0, ("", "", metric_name(found.metric), "loss"))
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    for mark, *cells in rows:
        yield "  ".join(
            [
                f"{mark:<{widths[0]}}",
                *(f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True)),
            ]
        )
    yield found.reason
    if found.warning:
        yield found.warning
    if found.not_alone:
        yield sanitize(f"No model was trained alone: {found.not_alone}.")
    yield f"{found.judging} {found.trained_on}"
