"""The part of a model that a clinic receives: its fixed features, and facts about the data.

It is a folder with the study's table [model] and the run's `dataset.json`. It has no weights that a
run has learned.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import tomli_w
from attrs import field, frozen

from cohortium.catalog import construction
from cohortium.catalog.discovery import discover
from cohortium.errors import DataError, RequestError, RunError
from cohortium.inference.stored_images import require_stored_form
from cohortium.learning.preprocessing import preprocess
from cohortium.runs import dataset_info
from cohortium.runs.run_folder import PUBLIC_MODEL
from cohortium.study import toml

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from cohortium.data.examples import DataSpec
    from cohortium.inference.classifier import Classifier
    from cohortium.roles.protocols import Model
    from cohortium.runs.dataset_info import DatasetInfo

TOLERANCE: Final = 1e-3
"""Largest difference of the features of the synthetic image, relative to their norm."""


@frozen(eq=False, kw_only=True)
class PublicModel:
    """Features of a model, and the classes' names.

    Attributes:
        model: Computes the features.
        dataset_info: Public facts about the data on which the model was trained.
        sha256: Digest of both, which names the model to its owner.
    """

    model: Model = field(repr=False)
    dataset_info: DatasetInfo
    sha256: bytes

    @classmethod
    def open(cls, folder: Path) -> PublicModel:
        """Read what `publish` wrote.

        Raises:
            RequestError: The folder has no such files.
            DataError: A file is damaged.
            PluginError: A plugin is not here.
        """
        path = folder / PUBLIC_MODEL
        if not path.is_file():
            raise RequestError(
                f"{folder} has no {PUBLIC_MODEL}; give the folder that `cohortium serve --public` "
                "wrote, which the model's owner sends."
            )
        table = toml.read(path, what="the model").get("model")
        if not isinstance(table, dict):
            raise DataError(f"{path} has no table [model]; ask the model's owner for it again.")
        model = construction.build_part(discover(), "model", table, where=str(path))
        known = dataset_info.read_dataset_info(folder)
        return cls(model=model, dataset_info=known, sha256=digest(table, known))

    @property
    def spec(self) -> DataSpec:
        """Shape of an image, and the classes."""
        return self.dataset_info.spec

    def features(self, images: NDArray[Any]) -> NDArray[np.float64]:
        """Return features (N, D) of stored images (N, C, …).

        Raises:
            DataError: The images are not of the type and shape on which the model was trained.
        """
        spec = self.spec
        require_stored_form(images, spec)
        found: NDArray[np.float64] = (
            preprocess(self.model, images, spec).double().flatten(1).numpy()
        )
        return found

    def require_probe(self, probe: NDArray[np.float32]) -> None:
        """Refuse to use another feature extractor than the owner's.

        Args:
            probe: The owner's features of the synthetic image.

        Raises:
            RequestError: They are not those of this model.
        """
        (own,) = self.features(probe_image(self.spec))
        if own.shape != probe.shape or not (
            np.linalg.norm(own - probe) <= TOLERANCE * np.linalg.norm(own)
        ):
            raise RequestError(
                "the features of a synthetic image differ from those of the model's owner; use the "
                "same version of the model's plugin, and the same file of pretrained weights."
            )


def publish(classifier: Classifier, folder: Path) -> None:
    """Write the public part of a run's model to a new folder.

    Raises:
        RequestError: The folder exists.
        RunError: It cannot be written.
    """
    try:
        folder.mkdir(parents=True)
        text = tomli_w.dumps({"model": model_table(classifier)})
        (folder / PUBLIC_MODEL).write_text(text, encoding="utf-8")
        facts = json.dumps(classifier.dataset_info.as_json(), indent=2)
        (folder / dataset_info.DATASET_INFO).write_text(facts, encoding="utf-8")
    except FileExistsError as error:
        raise RequestError(
            f"{folder} exists already; give another folder with --public."
        ) from error
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror}.") from error


def model_table(classifier: Classifier) -> dict[str, Any]:
    """Return the table [model] of a run's study."""
    table: dict[str, Any] = classifier.study["model"]
    return table


def digest(table: dict[str, Any], known: DatasetInfo) -> bytes:
    """Return the SHA-256 of a model's table and of the facts about its data."""
    whole = {"model": table, "dataset": known.as_json()}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).digest()


def probe_image(spec: DataSpec) -> NDArray[Any]:
    """Return a synthetic image, shape (1, C, …), that is the same everywhere.

    Its pixels are a wave over the declared range of intensities.
    """
    low, high = spec.intensity_range
    grid = np.indices(spec.shape, dtype=np.float64)
    steps = np.arange(1, len(spec.shape) + 1).reshape(-1, *[1] * len(spec.shape))
    wave = 0.5 + 0.5 * np.sin((grid * steps).sum(axis=0) / 3)
    image: NDArray[Any] = (low + wave * (high - low)).astype(spec.pixel_type)
    return image[None]
