"""Fine-tuning of a network on one site's own images, for that site alone.

The result is trained without noise.  It may reveal the images, so it must not leave the site.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Literal

import numpy as np
from attrs import field, frozen
from attrs.validators import ge, gt, in_, le, lt

from cohortium import parameters
from cohortium.catalog.networks import blame_network
from cohortium.errors import RequestError
from cohortium.learning.evaluation import Evaluation
from cohortium.learning.optimizers import RATE
from cohortium.learning.preprocessing import preprocess
from cohortium.learning.statistics_rounds import is_statistics_parameter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from cohortium.crypto.randomness import Seeds
    from cohortium.data.examples import DataSpec, Examples
    from cohortium.data.scores import Scores
    from cohortium.learning.kept_features import FeatureFolder
    from cohortium.roles.protocols import Model

Learn = Literal["all", "head"]
"""Parameters that fine-tuning changes: all, or those of the last layer that has some."""

MIN_UNITS = 8
"""Fewest images, or patients, of a site that can choose a number of epochs."""


@frozen(kw_only=True)
class FineTuning:
    """Recipe of a fine-tuning: epochs of Adam, of which a validation part chooses the number.

    The best number of epochs has the best main metric on the validation part.  Of equals, the one
    with the smallest loss is chosen, if the task has a loss.  Then the smallest number counts.
    0 is a candidate, so the result is never worse there than the start.

    Attributes:
        epochs: Most passes over the images.
        learning_rate: Learning rate of Adam (Kingma and Ba 2015).
        batch_size: Images in a batch.  Batches of an epoch have equal sizes, up to one image.
        learn: Parameters that learn.  With "head", statistics such as BatchNorm's stay as well.
        pull: λ of the gradient's term λ(w - w_start), which keeps the weights near the start (Li et
            al. 2020).
        validation_fraction: Share of the images, or of the patients if the images name them, that
            only chooses the number of epochs.
    """

    epochs: int = field(default=30, validator=[ge(1), le(10_000)])
    learning_rate: float = field(default=1e-3, validator=RATE)
    batch_size: int = field(default=32, validator=[ge(1), le(1 << 24)])
    learn: Learn = field(default="all", validator=in_(("all", "head")))
    pull: float = field(default=0.0, validator=[ge(0), le(1e6)])
    validation_fraction: float = field(default=0.25, validator=[gt(0), lt(1)])

    def fine_tune(
        self,
        net: nn.Module,
        examples: Examples,
        spec: DataSpec,
        model: Model,
        seeds: Seeds,
        *,
        device: str = "cpu",
        features: FeatureFolder | None = None,
        progress: Callable[[int, float], None] | None = None,
    ) -> FineTuned:
        """Return a fine-tuned copy of `net`, which is not changed.

        Args:
            net: The network to start from, on `device`.
            examples: The site's images.
            spec: Shape of an image, and the classes.
            model: The model of `net`, which prepares images.
            seeds: Seeds of the validation part and of the batches.
            device: Device on which torch computes.
            features: Folder that keeps features between runs.
            progress: Called after each epoch with its number and its score on the validation part.
                Number 0 is the start.

        Guarantees:
            On the validation part, the result scores no less than `net`.
            Equal arguments, device and threads give equal bits.

        Raises:
            RequestError: There are too few images, or nothing that could learn.
            BrokenNetworkError: The network fails on the images.
        """
        import torch

        # Of the original, because a copy's parameters lose their marks.
        part = _LearningPart.of(net, self.learn)
        train, held = self._parts(examples, seeds)
        inputs = preprocess(model, examples.images, spec, features).to(device)
        watch = Evaluation(model, inputs[torch.from_numpy(held)], examples.select(held), spec)
        labels = torch.from_numpy(np.ascontiguousarray(examples.labels)).to(device)
        data = _Data(inputs, labels, spec)
        best, tuned = copy.deepcopy(net), copy.deepcopy(net)
        scores, chosen = [watch.score(net)], 0
        if progress is not None:
            progress(0, scores[0].main)
        with torch.random.fork_rng(devices=[]), blame_network(model, tuned, "cannot be trained"):
            # Layers such as Dropout draw from torch's global generator.
            torch.manual_seed(seeds.integer("fine-tuning layers"))
            for loss in self._epochs(tuned, part, data, train, seeds):
                if not math.isfinite(loss):
                    break
                scores.append(watch.score(tuned))
                if _rank(scores[-1]) > _rank(scores[chosen]):
                    best, chosen = copy.deepcopy(tuned), len(scores) - 1
                if progress is not None:
                    progress(len(scores) - 1, scores[-1].main)
        return FineTuned(
            net=best.eval(),
            epochs=chosen,
            scores=tuple(each.main for each in scores),
            metric=scores[0].main_metric,
            train_images=len(train),
            validation_images=len(held),
        )

    def _parts(self, examples: Examples, seeds: Seeds) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return the positions of the images that train, and of those that choose."""
        owners = np.arange(len(examples)) if examples.patients is None else examples.patients
        units = np.unique(owners)
        if len(units) < MIN_UNITS:
            kind = "image" if examples.patients is None else "patient"
            told = f"there {'is' if len(units) == 1 else 'are'} {len(units)} {kind}"
            raise RequestError(
                f"{told}{'s' * (len(units) != 1)}, and a fine-tuning needs {MIN_UNITS}, of which "
                "some choose the number of epochs."
            )
        count = min(max(1, round(self.validation_fraction * len(units))), len(units) - 1)
        rng = seeds.generator("fine-tuning validation")
        is_held = np.isin(owners, rng.choice(units, count, replace=False))
        return np.flatnonzero(~is_held), np.flatnonzero(is_held)

    def _epochs(
        self,
        net: nn.Module,
        part: _LearningPart,
        data: _Data,
        train: NDArray[np.intp],
        seeds: Seeds,
    ) -> Iterator[float]:
        """Train `net` in place, and yield the mean loss of each epoch after it."""
        import torch

        layer, named = net.get_submodule(part.layer), dict(net.named_parameters())
        learned = [named[name] for name in part.names]
        start = [p.detach().clone() for p in learned]
        optimizer = torch.optim.Adam(learned, lr=self.learning_rate)
        rng = seeds.generator("fine-tuning batches")
        for _ in range(self.epochs):
            net.eval()
            layer.train()
            total, batches = 0.0, -(-len(train) // self.batch_size)
            # Equal parts: a last batch of one image has no variance for batch normalisation.
            for batch in np.array_split(rng.permutation(train), batches):
                index = torch.from_numpy(batch).to(data.labels.device)
                losses = data.losses(net, index)
                gradients = torch.autograd.grad(losses.mean(), learned, allow_unused=True)
                for parameter, gradient, anchor in zip(learned, gradients, start, strict=True):
                    parameter.grad = torch.zeros_like(parameter) if gradient is None else gradient
                    if self.pull:
                        parameter.grad.add_(parameter.detach() - anchor, alpha=self.pull)
                optimizer.step()
                total += float(losses.detach().sum())
            if not bool(torch.isfinite(parameters.flatten(net)).all()):
                total = math.nan
            yield total / len(train)


@frozen(eq=False, kw_only=True)
class FineTuned:
    """A fine-tuned network.

    Attributes:
        net: The network after the best number of epochs, in evaluation mode.
        epochs: That number.
        scores: Main metric on the validation part after each epoch.  The first is the start's.
            Fewer than all epochs follow if the loss became infinite.
        metric: Name of that metric.
        train_images: Number of images that trained.
        validation_images: Number of images that chose.
    """

    net: nn.Module = field(repr=False)
    epochs: int
    scores: tuple[float, ...]
    metric: str
    train_images: int
    validation_images: int


def _rank(scores: Scores) -> tuple[float, float]:
    """Return a key that is greater for better scores."""
    return scores.main, 0.0 if scores.loss is None else -scores.loss


@frozen(eq=False)
class _Data:
    """A site's images, prepared: inputs of shape (N, …), and their labels."""

    inputs: Tensor
    labels: Tensor
    spec: DataSpec

    def losses(self, net: nn.Module, index: Tensor) -> Tensor:
        """Return the loss of each image at `index`, shape (B,)."""
        return self.spec.task.losses(net(self.inputs[index]), self.labels[index], None)


@frozen
class _LearningPart:
    """The part of a network that learns.

    Attributes:
        layer: Name of the layer, "" for the network.
        names: Names of the parameters in the network.
    """

    layer: str
    names: tuple[str, ...]

    @classmethod
    def of(cls, net: nn.Module, learn: Learn) -> _LearningPart:
        """Return all of `net`, or its last layer with parameters that can learn.

        Raises:
            RequestError: There is none.
        """
        able = {
            name: name.rpartition(".")[0]
            for name, parameter in net.named_parameters()
            if parameter.requires_grad and not is_statistics_parameter(parameter)
        }
        if not able:
            raise RequestError("the network has no parameters that could learn.")
        if learn == "all":
            return cls("", tuple(able))
        last = list(able.values())[-1]
        return cls(last, tuple(name for name, layer in able.items() if layer == last))
