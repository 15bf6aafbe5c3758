"""Adaptation of a trained model to one hospital, where it then stays."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING

import attrs
import msgspec
import tomli_w
from attrs import frozen

from cohortium import parameters
from cohortium.crypto.randomness import Seeds
from cohortium.errors import DataError, RequestError, RunError
from cohortium.inference.own_state import trainer_of
from cohortium.inference.personal import Adaptation, Personal
from cohortium.runs.alone import AloneTraining
from cohortium.runs.dataset_info import DATASET_INFO
from cohortium.runs.personal_mark import PERSONAL
from cohortium.runs.result import LAST, RESULT, versions
from cohortium.storage.atomic_folder import atomic_folder
from cohortium.storage.writable import check_directory_writable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

    from cohortium.data.examples import Examples
    from cohortium.data.splits import Splits
    from cohortium.inference.classifier import Classifier
    from cohortium.learning.fine_tuning import FineTuning
    from cohortium.learning.kept_features import FeatureFolder
    from cohortium.learning.preprocessing import Features
    from cohortium.runs.alone import Run


@frozen(kw_only=True)
class AdaptedModel:
    """An adapted model on disk.

    Attributes:
        folder: Its folder.
        adaptation: The record of its training.
        personal: The reason why it must not leave the hospital.
    """

    folder: Path
    adaptation: Adaptation
    personal: Personal


def check_adaptable(classifier: Classifier, out: Path) -> None:
    """Refuse a model that cannot be adapted, or a folder that exists, before the work.

    Args:
        classifier: The model.
        out: Folder of the adapted one.

    Raises:
        RequestError: It is such a model or folder.
    """
    if out.exists() or out.is_symlink():
        raise RequestError(f"{out} exists already; give a new folder with --out.")
    check_directory_writable(out)
    if classifier.personal is not None and classifier.personal.adaptation is not None:
        raise RequestError(
            f"{classifier.folder} is adapted already; give the run's folder instead, so that "
            "images which have trained it do not judge it."
        )
    if classifier.result is None:
        raise RequestError(
            f"the run in {classifier.folder} is not complete, so that there is no guarantee to "
            "state; let it come to its end first."
        )
    if not classifier.has_study_network:
        raise RequestError(
            "the site's own network is of another form than the study's model, so it cannot be "
            "adapted; leave out --state to adapt the global network."
        )


def require_same_kind(classifier: Classifier, splits: Splits) -> None:
    """Refuse images of another kind than those of the model.

    Raises:
        DataError: They are, and the sentence names the difference.
    """
    wanted, found = classifier.spec, splits.spec
    if wanted.describes(found):
        return
    raise DataError(f"the hospital's images do not fit the model: {wanted.difference(found)}.")


def training_alone(classifier: Classifier, run: Run) -> AloneTraining:
    """Return the recipe of the model's study, for a hospital that trains alone on the CPU.

    Args:
        classifier: The run's model.
        run: Runs the study of one site.

    Raises:
        DataError: The run's study lacks a term of it.
        StudyError: The trainer cannot be built.
        PluginError: Its plugin cannot be used.
    """
    where = str(classifier.folder / "study.toml")
    terms = classifier.study.get("federation")
    try:
        found = msgspec.convert(terms, _Terms)
    except msgspec.ValidationError as error:
        raise DataError(f"{where}: [federation] is damaged ({error}); take it from the run.") from (
            error
        )
    return AloneTraining(
        model=classifier.model,
        trainer=trainer_of(classifier.study, where=where),
        rounds=found.rounds,
        seed=found.seed,
        device="cpu",
        threads=found.threads,
        run=run,
    )


@frozen
class _Terms:
    """The terms of a study that a site alone keeps."""

    rounds: int
    seed: int
    threads: int = 0


def adapt(
    classifier: Classifier,
    splits: Splits,
    out: Path,
    recipe: FineTuning,
    *,
    seed: int = 1,
    run: Run | None = None,
    features: FeatureFolder | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> AdaptedModel:
    """Choose a model for a hospital by its own training images, and write it to a new folder.

    Args:
        classifier: The run's model, or a site's own of the run's trainer.
        splits: The hospital's images, of which only the training images are used.
        out: The folder.
        recipe: Recipe of the fine-tuning and of the choice.
        seed: Seed of the folds and of the batches.
        run: Runs the study of one site, so that a model trained alone is a candidate. None leaves
            that candidate out.
        features: Folder that keeps features between runs.
        progress: As for `FineTuning.fine_tune`.

    Guarantees:
        No noise protects the images, and no ε counts them: the result must not leave the hospital.
        The run's guarantee is untouched, because nothing leaves.
        The result is chosen as `FineTuning` states.
        The folder is whole or missing, and only its owner can read it.
        Equal arguments, threads and versions give equal weights.

    Raises:
        RequestError: The folder exists, the run is not complete, or there are too few images.
        DataError: The images are of another kind, or the run's files are damaged.
        RunError: The folder cannot be written.
    """
    check_adaptable(classifier, out)
    require_same_kind(classifier, splits)
    training = None if run is None else training_alone(classifier, run)

    def alone(examples: Examples, computed: Features) -> nn.Module:
        assert training is not None
        own = attrs.evolve(splits, train=examples, test=None)
        return training.train(own, computed).net

    tuned = recipe.fine_tune(
        classifier.net,
        splits.train,
        classifier.spec,
        classifier.model,
        Seeds(seed),
        alone=None if training is None else alone,
        features=features,
        progress=progress,
    )
    adaptation = Adaptation(
        start="global" if classifier.personal is None else "own",
        start_weights_sha256=classifier.sha256,
        weights_sha256=parameters.sha256(tuned.net),
        start_guarantee=classifier.guarantee,
        learn=recipe.learn,
        max_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        batch_size=recipe.batch_size,
        pull=recipe.pull,
        margin=recipe.margin,
        seed=seed,
        metric=tuned.metric,
        candidates=tuned.candidates,
        chosen=tuned.chosen,
        share=recipe.share,
        networks=tuned.networks,
        not_alone=tuned.not_alone,
        images=tuned.images,
        folds=tuned.folds,
        unchosen=tuned.unchosen,
        guess_loss=tuned.guess_loss,
        written=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    )
    try:
        atomic_folder(out, _files(classifier, tuned.net, adaptation))
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror}.") from error
    return AdaptedModel(folder=out, adaptation=adaptation, personal=Personal.adapted(adaptation))


def _files(classifier: Classifier, net: nn.Module, adaptation: Adaptation) -> dict[str, bytes]:
    """Return the files that `Classifier.open` reads, and the mark first."""
    from safetensors.torch import save

    result = {
        "guarantee": None,
        "scores": None,
        "rounds": classifier.rounds,
        "data": classifier.dataset_info.name,
        "weights_sha256": adaptation.weights_sha256,
        "versions": versions(),
    }
    facts = attrs.evolve(classifier.dataset_info, validation=0, test=0).as_json()
    tensors = {name: t.contiguous() for name, t in parameters.state_dict(net).items()}
    return {
        PERSONAL: adaptation.as_bytes(),
        "study.toml": tomli_w.dumps(classifier.study).encode(),
        DATASET_INFO: json.dumps(facts, indent=2, ensure_ascii=False).encode() + b"\n",
        LAST: save(tensors, metadata={"rounds": str(classifier.rounds)}),
        RESULT: json.dumps(result, indent=2, ensure_ascii=False).encode() + b"\n",
    }
