"""A model's preprocessing of whole image sets, part by part.

The result of a small set is in memory, and of a large one in an unnamed file (see `scratch`). Such
a tensor is used like any other. The operating system reads the parts that a batch needs.

A folder of features keeps the result for later runs (see `kept_features`).
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs
import numpy as np
from attrs import field, frozen

from cohortium.data.intensity import to_unit_range
from cohortium.data.scratch import new_array
from cohortium.errors import NetworkError
from cohortium.learning.feature_key import feature_key, sample_positions
from cohortium.text import escape_control_characters

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import DTypeLike, NDArray
    from torch import Tensor

    from cohortium.data.examples import DataSpec
    from cohortium.learning.kept_features import FeatureFolder
    from cohortium.roles.protocols import Model

    Features: TypeAlias = FeatureFolder | "ComputedInputs"
    """A source of features that are computed already: a folder, or memory."""

MAX_WHOLE_BYTES: Final = 1 << 28
"""Largest set, in bytes of its `float32` images, that is one part: 256 MiB."""

PART_BYTES: Final = 1 << 26
"""Size of a part of a larger set, in bytes of its `float32` images: 64 MiB."""


def preprocess(
    model: Model, images: NDArray[Any], spec: DataSpec, features: Features | None = None
) -> Tensor:
    """Return the network's inputs for stored images, shape (N, …).

    Args:
        model: Model whose `preprocess` is fixed and per image.
        images: Stored images, shape (N, C, …), in memory or mapped.
        spec: Public facts about the data.
        features: Folder that keeps features between runs, or features in memory. Inputs in the form
            of the images are not features: to compute them takes less than to read them.

    Guarantees:
        The result has the same bits with and without a folder.
        Features in memory are those of an image among the images with which they were computed.

    Raises:
        NetworkError: The model gives parts of different shapes, or there is no room for them.
        RunError: The folder of features cannot be used.
    """
    if isinstance(features, ComputedInputs):
        known = features.find(model, images)
        return preprocess(model, images, spec, features.folder) if known is None else known
    if features is None or not len(images) or not attrs.has(type(model)):
        return _compute(model, images, spec, new_array)
    sample = model.preprocess(to_unit_range(images[sample_positions(len(images))], spec))
    size = len(images) * sample[:1].nbytes
    if not _are_features(sample, spec) or size > features.max_bytes:
        return _compute(model, images, spec, new_array)
    return _kept(model, images, spec, features, sample)


@frozen(eq=False)
class ComputedInputs:
    """Features of a set of images in memory, for networks that train on parts of the set.

    Attributes:
        model: Model of the features.
        inputs: Features of all images, shape (N, …). None if the model's inputs are no features.
        positions: Position of each image, by a digest of its stored values.
        folder: Folder that keeps features of other images.
    """

    model: Model
    inputs: Tensor | None = field(repr=False)
    positions: Mapping[bytes, int] = field(repr=False)
    folder: FeatureFolder | None = None

    @classmethod
    def of(
        cls,
        model: Model,
        images: NDArray[Any],
        spec: DataSpec,
        features: Features | None = None,
    ) -> ComputedInputs:
        """Compute the features of stored images (N, C, …) as `preprocess` does."""
        folder = features.folder if isinstance(features, ComputedInputs) else features
        if not len(images) or not _are_features(
            model.preprocess(to_unit_range(images[:1], spec)), spec
        ):
            return cls(model, None, {}, folder)
        positions = {_digest(image): position for position, image in enumerate(images)}
        return cls(model, preprocess(model, images, spec, features), positions, folder)

    def find(self, model: Model, images: NDArray[Any]) -> Tensor | None:
        """Return a copy of the features of `images`, or None if those of one are unknown."""
        if self.inputs is None or model != self.model:
            return None
        found = [self.positions.get(_digest(image)) for image in images]
        known = [position for position in found if position is not None]
        return self.inputs[known] if len(known) == len(found) else None


def _digest(image: NDArray[Any]) -> bytes:
    """Return a digest of an image's stored values."""
    return hashlib.sha256(np.ascontiguousarray(image).data).digest()


def _are_features(inputs: Tensor, spec: DataSpec) -> bool:
    """Return whether inputs are floating-point numbers in another form than images."""
    import torch

    floats = (torch.float16, torch.float32, torch.float64)
    return inputs.dtype in floats and inputs.ndim != 1 + len(spec.shape)


def _kept(
    model: Model, images: NDArray[Any], spec: DataSpec, features: FeatureFolder, sample: Tensor
) -> Tensor:
    """Return the inputs from the folder, or compute and keep them."""
    import torch

    key = feature_key(model, images, spec, sample)
    shape = (len(images), *sample.shape[1:])
    found = features.read(key)
    if found is not None and found.shape == shape:
        return torch.from_numpy(found)
    with features.new_file(key, len(images) * sample[:1].nbytes) as file:
        whole = _compute(model, images, spec, file.allocate)
        return torch.from_numpy(file.finish(whole.detach().numpy()))


def _compute(
    model: Model,
    images: NDArray[Any],
    spec: DataSpec,
    allocate: Callable[[tuple[int, ...], DTypeLike], NDArray[Any]],
) -> Tensor:
    """Return the inputs, those of a large set in an array of `allocate`."""
    import torch

    image = 4 * math.prod(spec.shape)
    if len(images) * image <= MAX_WHOLE_BYTES:
        return model.preprocess(to_unit_range(images, spec))
    step = max(1, PART_BYTES // image)
    first = model.preprocess(to_unit_range(images[:step], spec))
    shape = (len(images), *first.shape[1:])
    try:
        whole = torch.from_numpy(allocate(shape, first.detach().numpy().dtype))
    except OSError as error:
        raise NetworkError(
            f"there is no room for the inputs of {len(images):,} images in the folder of temporary "
            f"files ({escape_control_characters(str(error.strerror))}); set TMPDIR to another."
        ) from error
    whole[:step] = first
    for start in range(step, len(images), step):
        part = model.preprocess(to_unit_range(images[start : start + step], spec))
        if part.shape[1:] != first.shape[1:]:
            raise NetworkError(
                f"the model's preprocess gives inputs of shape {tuple(part.shape[1:])} after some "
                f"of shape {tuple(first.shape[1:])}; give one shape for all images."
            )
        whole[start : start + step] = part
    return whole
