"""Adaptation of a trained model to one hospital, where it then stays."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING

import attrs
import tomli_w
from attrs import frozen

from cohortium import parameters
from cohortium.crypto.randomness import Seeds
from cohortium.errors import DataError, RequestError, RunError
from cohortium.inference.personal import Adaptation, Personal
from cohortium.runs.dataset_info import DATASET_INFO
from cohortium.runs.personal_mark import PERSONAL
from cohortium.runs.result import LAST, RESULT, versions
from cohortium.storage.atomic_folder import atomic_folder
from cohortium.storage.writable import check_directory_writable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

    from cohortium.data.examples import DataSpec
    from cohortium.data.splits import Splits
    from cohortium.inference.classifier import Classifier
    from cohortium.learning.fine_tuning import FineTuning
    from cohortium.learning.kept_features import FeatureFolder


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
            f"{classifier.folder} is adapted already; give the run's folder instead, so that the "
            "images which chose its epochs do not train it."
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
    raise DataError(f"the hospital's images do not fit the model: {_difference(wanted, found)}.")


def adapt(
    classifier: Classifier,
    splits: Splits,
    out: Path,
    recipe: FineTuning,
    *,
    seed: int = 1,
    features: FeatureFolder | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> AdaptedModel:
    """Fine-tune a model on a hospital's own training images, and write it to a new folder.

    Args:
        classifier: The run's model, or a site's own of the run's trainer.
        splits: The hospital's images, of which only the training images are used.
        out: The folder.
        recipe: Recipe of the fine-tuning.
        seed: Seed of the validation part and of the batches.
        features: Folder that keeps features between runs.
        progress: As for `FineTuning.fine_tune`.

    Guarantees:
        No noise protects the images, and no ε counts them: the result must not leave the hospital.
        The run's guarantee is untouched, because nothing leaves.
        On the validation part, the result scores no less than the start.
        The folder is whole or missing, and only its owner can read it.
        Equal arguments, threads and versions give equal weights.

    Raises:
        RequestError: The folder exists, the run is not complete, or there are too few images.
        DataError: The images are of another kind, or the run's files are damaged.
        RunError: The folder cannot be written.
    """
    check_adaptable(classifier, out)
    require_same_kind(classifier, splits)
    tuned = recipe.fine_tune(
        classifier.net,
        splits.train,
        classifier.spec,
        classifier.model,
        Seeds(seed),
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
        seed=seed,
        metric=tuned.metric,
        epochs=tuned.epochs,
        scores=tuned.scores,
        train_images=tuned.train_images,
        validation_images=tuned.validation_images,
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


def _difference(wanted: DataSpec, found: DataSpec) -> str:
    """Return the first difference between two kinds of images, in words."""
    if found.classes != wanted.classes:
        unknown = [name for name in found.classes if name not in wanted.classes]
        if unknown:
            return f"the label {unknown[0]!r} is none of {', '.join(wanted.classes)}"
        return f"their classes are {', '.join(found.classes)}, not {', '.join(wanted.classes)}"
    if found.task != wanted.task:
        return f"their task is {type(found.task).__name__}, not {type(wanted.task).__name__}"
    if found.shape != wanted.shape or found.pixel_type != wanted.pixel_type:
        return (
            f"they are {found.pixel_type} of shape {found.shape}, not {wanted.pixel_type} of shape "
            f"{wanted.shape}"
        )
    return f"their intensities are {found.intensity_range}, not {wanted.intensity_range}"
