"""Fine-tuning of a network on one site's own images, for that site alone.

The result is trained without noise.  It may reveal the images, so it must not leave the site.

A site that trains alone may do better than with a fine-tuned network of the federation.  So the
network that it trains alone is a candidate, too, and cross-validation chooses.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from typing import TYPE_CHECKING, Literal

import numpy as np
from attrs import field, frozen
from attrs.validators import ge, gt, in_, le, lt

from cohortium import parameters
from cohortium.catalog.networks import blame_network
from cohortium.data.multiclass import Multiclass
from cohortium.errors import RequestError
from cohortium.learning.candidates import Candidate, CandidateTable, Unchosen
from cohortium.learning.local_only import LocalOnly
from cohortium.learning.optimizers import RATE
from cohortium.learning.preprocessing import ComputedInputs, preprocess
from cohortium.learning.site_images import SiteImages
from cohortium.learning.statistics_rounds import is_statistics_parameter

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from numpy.typing import NDArray
    from torch import nn

    from cohortium.crypto.randomness import Seeds
    from cohortium.data.examples import DataSpec, Examples
    from cohortium.learning.local_only import TrainAlone
    from cohortium.learning.preprocessing import Features
    from cohortium.roles.protocols import Model

Learn = Literal["all", "head"]
"""Parameters that fine-tuning changes: all, or those of the last layer that has some."""

MIN_UNITS = 8
"""Fewest images, or patients, of a site on which candidates can be compared."""


@frozen(kw_only=True)
class FineTuning:
    """Recipe of a fine-tuning: epochs of Adam, and the choice among the resulting networks.

    Candidates are the start, the network after each epoch, one that the site trains alone, and an
    ensemble: the weighted mean of the outputs of that one and of the network after all epochs.  All
    are compared by cross-validation over the site's images.

    The network that the site trains alone is the reference.  The ensemble replaces it if two things
    hold.  Its loss is lower by more than `margin` standard errors of the paired difference (similar
    to the rule of Breiman et al. 1984).  Its score is no lower.

    The start and the epochs may have been trained on the same images in the run before, which
    flatters them.  So they need a loss and a score that are better by three times that margin.  Of
    those, the one with the lowest loss is chosen.

    Without a network trained alone, the start is the reference.  The epoch with the lowest loss
    replaces it by the first of these rules.  The chosen candidate is trained on all images.

    A reference that is worse than guessing protects nobody.  Guessing means outputs of zero, which
    give every class the same probability.  If the loss of the reference is above that of guessing,
    the margins are zero: of the candidates with no lower score, the one with the lowest loss is
    chosen.

    Attributes:
        epochs: Most passes over the images.
        learning_rate: Learning rate of Adam (Kingma and Ba 2015).
        batch_size: Images in a batch.  Batches of an epoch have equal sizes, up to one image.
        learn: Parameters that learn.  With "head", statistics such as BatchNorm's stay as well.
        pull: λ of the gradient's term λ(w - w_start), which keeps the weights near the start (Li et
            al. 2020).
        folds: Number of parts of the images.  Each part is predicted by networks of the others.  If
            the images name patients, the images of each are in one part.
        margin: Number of standard errors.
        share: Weight of the fine-tuned network in the ensemble.  The network that is trained alone
            has the rest.
    """

    epochs: int = field(default=10, validator=[ge(1), le(10_000)])
    learning_rate: float = field(default=1e-3, validator=RATE)
    batch_size: int = field(default=32, validator=[ge(1), le(1 << 24)])
    learn: Learn = field(default="all", validator=in_(("all", "head")))
    pull: float = field(default=0.0, validator=[ge(0), le(1e6)])
    folds: int = field(default=5, validator=[ge(2), le(MIN_UNITS)])
    margin: float = field(default=1.0, validator=[ge(0), le(1e3)])
    share: float = field(default=0.25, validator=[gt(0), lt(1)])

    def fine_tune(
        self,
        net: nn.Module,
        examples: Examples,
        spec: DataSpec,
        model: Model,
        seeds: Seeds,
        *,
        alone: TrainAlone | None = None,
        device: str = "cpu",
        features: Features | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> FineTuned:
        """Return the chosen network.  `net` is not changed.

        Args:
            net: The network to start from, on `device`.
            examples: The site's images.
            spec: Shape of an image, and the classes.
            model: The model of `net`, which prepares images.
            seeds: Seeds of the folds and of the batches.
            alone: Trains a network on examples of the site alone.  None leaves that candidate out.
            device: Device on which torch computes.
            features: Folder that keeps features between runs, or features in memory.
            progress: Called after each fold with its number from 1, and the number of folds.

        Guarantees:
            By cross-validation, the result has no lower score than the reference, and no greater
            loss.  (The reference remains if the chosen one diverges on all images.)
            Equal arguments, device and threads give equal bits.

        Raises:
            RequestError: There are too few images, or nothing that could learn. Or the loss of
                `net` on the images is no finite number.
            BrokenNetworkError: The network fails on the images.
        """
        import torch

        from cohortium.learning.ensemble import mix

        # Of the original, because a copy's parameters lose their marks.
        part = _LearningPart.of(net, self.learn)
        owners = np.arange(len(examples)) if examples.patients is None else examples.patients
        folds = self._folds(owners, examples, seeds)
        known = ComputedInputs.of(model, examples.images, spec, features)
        inputs = preprocess(model, examples.images, spec, known).to(device)
        labels = torch.from_numpy(np.ascontiguousarray(examples.labels)).to(device)
        data = SiteImages(inputs, labels, spec)
        start = _Start(net, part, model, data, seeds)
        table = CandidateTable.empty(self.epochs, owners)
        everything = np.arange(len(examples))
        table.put(0, everything, data.measure(net, everything))
        _require_finite(table.losses[0])
        local_only = LocalOnly.of(alone, examples, known, net)
        for fold, held in enumerate(folds):
            train = np.setdiff1d(everything, held)
            tuned = self._tune_fold(start, table, train, held, fold)
            local_only = local_only.narrowed(examples.select(train))
            if local_only.fold_net is not None:
                table.put(-1, held, data.measure(local_only.fold_net, held))
                if tuned is not None:
                    both = mix(local_only.fold_net, tuned, self.share)
                    table.put(-2, held, data.measure(both, held))
            if progress is not None:
                progress(fold + 1, len(folds))
        local_only = local_only.required_finite(table.losses[-1])
        guess_loss = data.guess_loss()
        choice = table.choose(self.margin, guess_loss, has_local_only=local_only.net is not None)
        candidates, chosen, unchosen = choice
        reference = len(candidates) - 1 if local_only.net is not None else 0
        with contextlib.closing(self._path(start, everything, len(folds))) as path:
            best = next(itertools.islice(path, candidates[chosen].epochs, None), None)
        if best is None:  # It diverged on all images, so the reference remains.
            best, chosen, unchosen = net, reference, None
        if local_only.net is not None and candidates[chosen].kind == "alone":
            best = local_only.net
        if local_only.net is not None and candidates[chosen].kind == "ensemble":
            best = mix(local_only.net, best, self.share)
        return FineTuned(
            net=copy.deepcopy(best).eval(),
            candidates=candidates,
            chosen=chosen,
            metric="accuracy" if isinstance(spec.task, Multiclass) else "image score",
            images=len(examples),
            folds=len(folds),
            not_alone=local_only.reason,
            unchosen=unchosen,
            guess_loss=guess_loss,
        )

    def _folds(
        self, owners: NDArray[np.intp], examples: Examples, seeds: Seeds
    ) -> tuple[NDArray[np.intp], ...]:
        """Return the positions of each fold.  Units of one class are spread over the folds."""
        units, first = np.unique(owners, return_index=True)
        if len(units) < MIN_UNITS:
            kind = "image" if examples.patients is None else "patient"
            told = f"there {'is' if len(units) == 1 else 'are'} {len(units)} {kind}"
            raise RequestError(
                f"{told}{'s' * (len(units) != 1)}, and a fine-tuning needs {MIN_UNITS}, because "
                "cross-validation compares its networks."
            )
        order = seeds.generator("fine-tuning folds").permutation(len(units))
        if examples.labels.ndim == 1:
            order = order[np.argsort(examples.labels[first[order]], kind="stable")]
        parts = [units[order[fold :: self.folds]] for fold in range(self.folds)]
        return tuple(np.flatnonzero(np.isin(owners, part)) for part in parts)

    def _tune_fold(
        self,
        start: _Start,
        table: CandidateTable,
        train: NDArray[np.intp],
        held: NDArray[np.intp],
        fold: int,
    ) -> nn.Module | None:
        """Enter each epoch's results for the `held` images, and return the last epoch's network.

        Return None if a weight became no finite number before that.
        """
        epoch, tuned = 0, start.net
        for epoch, tuned in enumerate(itertools.islice(self._path(start, train, fold), 1, None), 1):
            table.put(epoch, held, start.data.measure(tuned, held))
        return tuned if epoch == self.epochs else None

    def _path(
        self, start: _Start, train: NDArray[np.intp], number: int
    ) -> Generator[nn.Module, None, None]:
        """Yield a copy of the start before the first epoch and after each one.

        It is one network, which the next epoch changes.  The last one precedes any weight that is
        no finite number.
        """
        import torch

        tuned = copy.deepcopy(start.net)
        yield tuned
        rng = start.seeds.generator("fine-tuning batches", number)
        with (
            torch.random.fork_rng(devices=[]),
            blame_network(start.model, tuned, "cannot be trained"),
        ):
            # Layers such as Dropout draw from torch's global generator.
            torch.manual_seed(start.seeds.integer("fine-tuning layers", number))
            for loss in self._epochs(tuned, start, train, rng):
                if not math.isfinite(loss):
                    return
                yield tuned

    def _epochs(
        self,
        net: nn.Module,
        start: _Start,
        train: NDArray[np.intp],
        rng: np.random.Generator,
    ) -> Iterator[float]:
        """Train `net` in place, and yield the mean loss of each epoch after it."""
        import torch

        layer, named = net.get_submodule(start.part.layer), dict(net.named_parameters())
        learned = [named[name] for name in start.part.names]
        anchors = [p.detach().clone() for p in learned]
        optimizer = torch.optim.Adam(learned, lr=self.learning_rate)
        for _ in range(self.epochs):
            net.eval()
            layer.train()
            total, batches = 0.0, -(-len(train) // self.batch_size)
            # Equal parts: a last batch of one image has no variance for batch normalisation.
            for batch in np.array_split(rng.permutation(train), batches):
                index = torch.from_numpy(batch).to(start.data.labels.device)
                losses = start.data.losses(net, index)
                gradients = torch.autograd.grad(losses.mean(), learned, allow_unused=True)
                for parameter, gradient, anchor in zip(learned, gradients, anchors, strict=True):
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
    """The chosen network.

    Attributes:
        net: The network, in evaluation mode.
        candidates: All candidates: the start, each epoch, the ensemble, and the network trained
            alone.  Those with an infinite loss are missing.
        chosen: Position of the chosen one.
        metric: Name of the scores.
        images: Number of images.
        folds: Number of folds.
        not_alone: The reason why no network that was trained alone is a candidate, if one was
            asked for.
        unchosen: The candidate with the lowest loss, if another one was chosen.
        guess_loss: Mean of the images' losses for outputs of zero.  For K classes it is ln K.
    """

    net: nn.Module = field(repr=False)
    candidates: tuple[Candidate, ...]
    chosen: int
    metric: str
    images: int
    folds: int
    not_alone: str = ""
    unchosen: Unchosen | None = None
    guess_loss: float | None = None

    @property
    def choice(self) -> Candidate:
        """The chosen candidate."""
        return self.candidates[self.chosen]

    @property
    def networks(self) -> int:
        """Number of networks whose outputs `net` mixes."""
        from cohortium.learning.ensemble import MixedOutputs

        return 2 if isinstance(self.net, MixedOutputs) else 1


def _require_finite(losses: NDArray[np.float64]) -> None:
    """Refuse a start with which no candidate could be compared."""
    if not np.isfinite(losses).all():
        raise RequestError(
            f"the model's loss is no finite number on {int((~np.isfinite(losses)).sum()):,} of "
            f"{len(losses):,} images, so no other model can be compared with it; start from other "
            "weights."
        )


@frozen(eq=False)
class _Start:
    """The beginning of a fine-tuning: the network, its part that learns, and its images."""

    net: nn.Module
    part: _LearningPart
    model: Model
    data: SiteImages
    seeds: Seeds


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
