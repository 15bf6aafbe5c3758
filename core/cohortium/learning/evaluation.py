"""Scores of a network on public images, and torch's device."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from attrs import evolve, field, frozen

from cohortium.catalog.networks import blame_network, require_rows
from cohortium.data.predictions import Predictions
from cohortium.errors import StudyError
from cohortium.learning.preprocessing import preprocess

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from cohortium.data.examples import DataSpec, Examples
    from cohortium.data.scores import Scores
    from cohortium.learning.preprocessing import Features
    from cohortium.roles.protocols import Model

BATCH = 512
"""Most images that are scored at a time."""

BATCH_VALUES = 1 << 23
"""Most values of the inputs that are scored at a time, which bounds a network's memory."""


@frozen(eq=False)
class Evaluation:
    """Public images, preprocessed once, to score networks on.

    Attributes:
        model: The model that preprocessed the images and is scored.
        images: Preprocessed images, shape (N, …).
        examples: The examples before preprocessing.
        spec: Public facts about the data.
    """

    model: Model
    images: Tensor = field(repr=False)
    examples: Examples
    spec: DataSpec

    @classmethod
    def of(
        cls,
        examples: Examples | None,
        spec: DataSpec,
        model: Model,
        device: str,
        features: Features | None = None,
    ) -> Evaluation | None:
        """Preprocess `examples`, with the folder that keeps features.

        Return None where there are none.
        """
        if examples is None:
            return None
        inputs = preprocess(model, examples.images, spec, features)
        return cls(model, inputs.to(device), examples, spec)

    def score(self, net: nn.Module) -> Scores:
        """Return the scores of `net` without curves, and leave `net` unchanged."""
        return evolve(self.predict(net).scores, curves=())

    def predict(self, net: nn.Module) -> Predictions:
        """Return the predictions of `net` for each image, and leave `net` unchanged."""
        found = predict(self.model, net, self.images, self.spec)
        return Predictions(found, self.examples.labels, self.spec.task)


def predict(model: Model, net: nn.Module, images: Tensor, spec: DataSpec) -> NDArray[Any]:
    """Return the task's predictions for preprocessed images, shape (N, …).

    The network and the preprocessed images stay unchanged, even if the network works in place.

    Raises:
        BrokenNetworkError: The network fails on the images.
    """
    import torch

    training, parts = net.training, []
    net.eval()
    with torch.no_grad(), blame_network(model, net, "cannot be scored"):
        for batch in torch.split(images, batch_length(images)):
            outputs = net(batch.clone())
            require_rows(model, outputs, len(batch), spec.output_shape)
            parts.append(spec.task.predict(outputs).cpu())
    net.train(training)
    found = torch.cat(parts)
    predictions: NDArray[Any] = (found.double() if found.is_floating_point() else found).numpy()
    return predictions


def batch_length(images: Tensor) -> int:
    """Return the number of preprocessed images that are scored at a time."""
    return max(1, min(BATCH, BATCH_VALUES // max(1, images[:1].numel())))


def resolve_device(device: str) -> str:
    """Return `device`, or the best available device for "auto".

    Raises:
        StudyError: torch has no such device here.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).partition("\n")[0]
        reason = first.rstrip(".").partition("Expected one of")[0]
        because = f" ({reason})" if reason else ""
        raise StudyError(
            f"device = '{device}' cannot be used here{because}; take 'cpu', or 'auto' for the best "
            "that there is."
        ) from error
    return device


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Give torch `threads` threads within a block.  0 changes nothing."""
    if not threads:  # so that torch is not loaded for nothing
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
