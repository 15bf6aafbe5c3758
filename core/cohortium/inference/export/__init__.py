"""A trained model for others: weights, program and card.

The program needs only torch. The program takes raw images, so that nobody needs to know the model's
preparation of them. Before anything is written, the program is loaded again and compared with the
run's own network.
"""

from __future__ import annotations

import hashlib
import importlib.util
from typing import TYPE_CHECKING

import attrs

from cohortium.errors import RequestError, RunError
from cohortium.inference.export.card import Exported, model_card
from cohortium.inference.export.scores import recompute_scores
from cohortium.runs.run_folder import PROGRAM
from cohortium.storage.atomic import atomic_write
from cohortium.storage.writable import check_directory_writable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cohortium.inference.classifier import Classifier

WEIGHTS, ONNX, CARD = "weights.safetensors", "model.onnx", "README.md"
"""The files of an export."""

ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def export(classifier: Classifier, folder: Path, *, onnx: bool = False) -> tuple[Path, ...]:
    """Write a model's weights, program and card into a new folder.

    Args:
        classifier: Of a complete run.
        folder: A new or empty folder. It is created if necessary, that of a personal model for its
            owner alone.
        onnx: Whether to write the program as ONNX as well.

    Returns:
        The files, the card last. If the card exists, the other files are complete.

    Raises:
        DataError: The run's scores are not those of its stored predictions.
        RequestError: The run is not complete, the folder is not empty or cannot be written, or a
            package is missing.
        RunError: torch cannot write the model as a program, or the file system refuses the files.
    """
    if classifier.result is None:
        raise RequestError(
            f"the run is not complete (it has weights of round {classifier.rounds}), so that there "
            "is no guarantee to state; let it come to its end first."
        )
    missing = [name for name in ONNX_PACKAGES if onnx and importlib.util.find_spec(name) is None]
    if missing:
        raise RequestError(f"ONNX needs {' and '.join(missing)}; pip install 'cohortium[onnx]'.")
    check_directory_writable(folder)
    try:
        if folder.exists() and any(folder.iterdir()):
            raise RequestError(f"{folder} is not empty; give another folder with --out.")
    except OSError as error:
        raise RequestError(f"cannot write to {folder}: {error.strerror}.") from error
    is_scored_anew = classifier.personal is None and recompute_scores(classifier)
    files, exported = _files(classifier, onnx=onnx)
    exported = attrs.evolve(exported, is_scored_anew=is_scored_anew)
    mode = 0o777 if classifier.personal is None else 0o700
    return _write(folder, {**files, CARD: model_card(classifier, exported).encode()}, mode)


def _files(classifier: Classifier, *, onnx: bool) -> tuple[dict[str, bytes], Exported]:
    """Return the other files by name, and the card's facts about them."""
    from safetensors.torch import save

    from cohortium.inference.export import program
    from cohortium.parameters import state_dict

    notes = {"weights_sha256": classifier.sha256, "rounds": str(classifier.rounds)}
    files = {WEIGHTS: save(state_dict(classifier.net), metadata=notes)}
    traced = program.trace(classifier)
    files[PROGRAM] = program.as_torch(traced, classifier)
    if onnx:
        files[ONNX] = program.as_onnx(traced, classifier)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return files, Exported(hashes=hashes, most=traced.most)


def _write(folder: Path, files: Mapping[str, bytes], mode: int) -> tuple[Path, ...]:
    try:
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
        for name, data in files.items():
            atomic_write(folder / name, data)
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}.") from error
    return tuple(folder / name for name in files)
