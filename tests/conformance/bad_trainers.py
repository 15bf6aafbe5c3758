"""A small local trainer that keeps its contract, and subclasses that break it, one way each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from attrs import evolve, field, frozen
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Optimizer

from cohortium.plugin import (
    FederationSpec,
    LocalResult,
    LocalTask,
    ReleasedMean,
    SitePrivatizer,
    Workload,
    attach_schedule,
    parameters,
)
from cohortium_fedavg import FedAvg

GOOD = FedAvg(local_steps=2, batch_size=32, learning_rate=0.1)

Losses = Callable[[Any], Tensor]


def entropy(task: LocalTask, batch: Any) -> Tensor:
    return functional.cross_entropy(
        task.net(task.images[batch]), task.labels[batch], reduction="none"
    )


@frozen
class Local:
    """A good local trainer with `losses`, or what is done with them, done otherwise."""

    def losses(self, task: LocalTask) -> Losses:
        return lambda batch: entropy(task, batch)

    def steps(self, task: LocalTask, privatizer: SitePrivatizer) -> Iterable[Any]:
        return privatizer.batches(len(task.labels))

    def workload(self, federation_spec: FederationSpec) -> Workload:
        return GOOD.workload(federation_spec)

    def train(self, task: LocalTask, privatizer: SitePrivatizer) -> LocalResult:
        before = parameters.flatten(task.net)
        optimizer = SGD(parameters.trainable(task.net), lr=0.1)
        losses = self.losses(task)
        for batch in self.steps(task, privatizer):
            privatizer.set_private_gradient(task.net, losses, batch)
            optimizer.step()
        return self.made(task, before)

    def made(self, task: LocalTask, before: Tensor) -> LocalResult:
        return LocalResult(
            vector=parameters.flatten(task.net) - before, weight=float(len(task.labels))
        )

    def make_server_optimizer(self, parameters: Iterable[nn.Parameter], rounds: int) -> Any:
        return GOOD.make_server_optimizer(parameters, rounds)

    def personalize(self, net: nn.Module, state: Mapping[str, Tensor]) -> Any:
        return GOOD.personalize(net, state)


class Decorrelated(Local):
    """A term over the whole batch."""

    def losses(self, task: LocalTask) -> Losses:
        def losses(batch: Any) -> Tensor:
            each = entropy(task, batch)
            return each + (each - each.mean()).square()

        return losses


class Taught(Local):
    """Distils a teacher that it trained on the site's data itself."""

    def losses(self, task: LocalTask) -> Losses:
        teacher = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4))
        optimizer = SGD(teacher.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            functional.cross_entropy(teacher(task.images), task.labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        def losses(batch: Any) -> Tensor:
            wanted = teacher(task.images[batch]).detach().softmax(1)
            return functional.cross_entropy(task.net(task.images[batch]), wanted, reduction="none")

        return losses


class Weighted(Local):
    """Class weights counted from the site's labels."""

    def losses(self, task: LocalTask) -> Losses:
        weights = 1 / (1 + torch.bincount(task.labels, minlength=4).float())
        return lambda batch: entropy(task, batch) * weights[task.labels[batch]]


class Normalised(Local):
    """BatchNorm, put in front of the network by the trainer."""

    def losses(self, task: LocalTask) -> Losses:
        norm = nn.BatchNorm2d(3)

        def losses(batch: Any) -> Tensor:
            return functional.cross_entropy(
                task.net(norm(task.images[batch])), task.labels[batch], reduction="none"
            )

        return losses


class StandardisesTheSite(Local):
    """Every image minus the mean of the site's images."""

    def losses(self, task: LocalTask) -> Losses:
        moved = evolve(task, images=task.images - task.images.mean())
        return lambda batch: entropy(moved, batch)


class SkipsHardOnes(Local):
    def steps(self, task: LocalTask, privatizer: SitePrivatizer) -> Iterator[Any]:
        for batch in privatizer.batches(len(task.labels)):
            yield batch[task.labels[batch].numpy() != 2]


class TrainsBeside(Local):
    """An honest step, and one past the privatizer."""

    def made(self, task: LocalTask, before: Tensor) -> LocalResult:
        optimizer = SGD(parameters.trainable(task.net), lr=0.1)
        optimizer.zero_grad()
        functional.cross_entropy(task.net(task.images), task.labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return Local.made(self, task, before)


class KeepsAMean(Local):
    def made(self, task: LocalTask, before: Tensor) -> LocalResult:
        made = Local.made(self, task, before)
        return evolve(made, state={"mean": task.images.mean((0, 2, 3))})


class UsesAnOldMean(KeepsAMean):
    """What it kept last round reaches this round's losses: the state is enough to tell."""

    def losses(self, task: LocalTask) -> Losses:
        shift = task.state.get("mean", torch.zeros(3)).view(3, 1, 1)
        moved = evolve(task, images=task.images - shift)
        return lambda batch: entropy(moved, batch)


class OneLoss(Local):
    def losses(self, task: LocalTask) -> Losses:
        return lambda batch: entropy(task, batch).mean()


class OwnBatches(Local):
    def steps(self, task: LocalTask, privatizer: SitePrivatizer) -> Iterable[Any]:
        del privatizer
        return torch.randperm(len(task.labels)).numpy().reshape(2, -1)


class Halves(Local):
    """Uses each batch in halves, twice as many steps as declared."""

    def steps(self, task: LocalTask, privatizer: SitePrivatizer) -> Iterator[Any]:
        for batch in privatizer.batches(len(task.labels)):
            yield from np.array_split(batch, 2)


class Swaps(Local):
    """As many batches as were declared, but of other examples."""

    def steps(self, task: LocalTask, privatizer: SitePrivatizer) -> Iterator[Any]:
        for batch in privatizer.batches(len(task.labels)):
            yield np.arange(len(batch))


class AsksTwice(Local):
    def steps(self, task: LocalTask, privatizer: SitePrivatizer) -> Iterator[Any]:
        next(iter(privatizer.batches(len(task.labels))))
        yield from privatizer.batches(len(task.labels))


class Releases(Local):
    def train(self, task: LocalTask, privatizer: SitePrivatizer) -> LocalResult:
        trained = Local.train(self, task, privatizer)
        privatizer.release(trained.vector, 1.0)
        return trained


class ParametersOnly(Local):
    """Forgets BatchNorm's statistics."""

    def made(self, task: LocalTask, before: Tensor) -> LocalResult:
        whole = Local.made(self, task, before)
        size = sum(p.numel() for p in task.net.parameters())
        return evolve(whole, vector=whole.vector[:size])


class Explodes(Local):
    def made(self, task: LocalTask, before: Tensor) -> LocalResult:
        return evolve(Local.made(self, task, before), vector=before * math.inf)


class Weightless(Local):
    def made(self, task: LocalTask, before: Tensor) -> LocalResult:
        return evolve(Local.made(self, task, before), weight=-1.0)


@frozen
class WeighsOneClass(Local):
    """Its weight is the number of examples of one class."""

    label: int

    def made(self, task: LocalTask, before: Tensor) -> LocalResult:
        return evolve(
            Local.made(self, task, before), weight=float((task.labels == self.label).sum())
        )


class WeighsLabels(Local):
    """Its weight is the sum of the labels."""

    def made(self, task: LocalTask, before: Tensor) -> LocalResult:
        return evolve(Local.made(self, task, before), weight=float(task.labels.sum()))


class WeighsBrightness(Local):
    """Its weight follows the images."""

    def made(self, task: LocalTask, before: Tensor) -> LocalResult:
        return evolve(Local.made(self, task, before), weight=float(task.images.sum()))


class DividesByTheBatch(Local):
    def train(self, task: LocalTask, privatizer: SitePrivatizer) -> LocalResult:
        count: list[int] = []
        trained = Local.train(self, task, Counting(privatizer, count))
        return evolve(trained, vector=trained.vector / torch.tensor(sum(count)))


class Counting:
    def __init__(self, privatizer: SitePrivatizer, count: list[int]) -> None:
        self.privatizer, self.count = privatizer, count

    def batches(self, examples: int) -> Iterator[Any]:
        for batch in self.privatizer.batches(examples):
            self.count.append(len(batch))
            yield batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.privatizer, name)


class Jitters(Local):
    def made(self, task: LocalTask, before: Tensor) -> LocalResult:
        made = Local.made(self, task, before)
        return evolve(made, vector=made.vector + 0.01 * torch.randn(len(before)))


class SendsWeights(Local):
    def made(self, task: LocalTask, before: Tensor) -> LocalResult:
        return evolve(Local.made(self, task, before), vector=parameters.flatten(task.net))


class SendsBackwards(Local):
    def made(self, task: LocalTask, before: Tensor) -> LocalResult:
        made = Local.made(self, task, before)
        return evolve(made, vector=-made.vector)


class Remembers(Local):
    """Draws from the operating system what the task's generator is for."""

    def losses(self, task: LocalTask) -> Losses:
        rng = np.random.default_rng()
        noise = torch.from_numpy(rng.normal(size=task.images.shape).astype(np.float32))
        moved = evolve(task, images=task.images + noise)
        return lambda batch: entropy(moved, batch)


class WorksInPlace(Local):
    def losses(self, task: LocalTask) -> Losses:
        task.images.sub_(0.5)
        return Local.losses(self, task)


class NoSchedule(Local):
    def make_server_optimizer(self, parameters: Iterable[nn.Parameter], rounds: int) -> Any:
        return GOOD.make_server_optimizer(parameters, rounds)[0]


class HalfTheParameters(Local):
    def make_server_optimizer(self, parameters: Iterable[nn.Parameter], rounds: int) -> Any:
        return GOOD.make_server_optimizer(list(parameters)[:2], rounds)


class Climbs(Local):
    def make_server_optimizer(self, parameters: Iterable[nn.Parameter], rounds: int) -> Any:
        optimizer: Optimizer = SGD(parameters, lr=0.1, maximize=True)
        return attach_schedule(optimizer, "constant", rounds)


class PersonalState(Local):
    def personalize(self, net: nn.Module, state: Mapping[str, Tensor]) -> Any:
        del net
        return dict(state)


class PersonalBody(Local):
    def personalize(self, net: nn.Module, state: Mapping[str, Tensor]) -> Any:
        del state
        assert isinstance(net, nn.Sequential)
        return net[:-1]


class PersonalInPlace(Local):
    def personalize(self, net: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
        del state
        next(net.parameters()).data.zero_()
        return net


@frozen(kw_only=True)
class Undeclared(FedAvg):
    """Mixes examples by MixUp, and declares the workload of a trainer that does not."""

    def workload(self, federation_spec: FederationSpec) -> Workload:
        return evolve(super().workload(federation_spec), has_mixed_examples=False)


class Drifting(Local):
    """A good trainer with a server state: the sum of all means, with their norm released."""

    def made(self, task: LocalTask, before: Tensor) -> LocalResult:
        made = super().made(task, before)
        return LocalResult(vector=made.vector, weight=made.weight, extra=made.vector.norm()[None])

    def extra_length(self, parameters: int) -> int:
        return 1

    def initial_server_state(self, parameters: int) -> Tensor:
        return torch.zeros(parameters)

    def next_server_state(self, server_state: Tensor, mean: ReleasedMean) -> Tensor:
        return server_state + mean.share * mean.vector


class TooMuch(Drifting):
    """It releases more than it declares."""

    def extra_length(self, parameters: int) -> int:
        return 0


class CountsLabels(Drifting):
    """It releases the sum of its labels beside its update."""

    def made(self, task: LocalTask, before: Tensor) -> LocalResult:
        made = super().made(task, before)
        count = task.labels.sum().float()[None]
        return LocalResult(vector=made.vector, weight=made.weight, extra=count)


class MovesInPlace(Drifting):
    """It adds to the server state in place."""

    def next_server_state(self, server_state: Tensor, mean: ReleasedMean) -> Tensor:
        return server_state.add_(mean.vector)


class Grows(Drifting):
    """Its server state keeps all means."""

    def next_server_state(self, server_state: Tensor, mean: ReleasedMean) -> Tensor:
        return torch.cat([server_state, mean.vector])


class Doubles(Drifting):
    """Its server state is in double precision."""

    def initial_server_state(self, parameters: int) -> Tensor:
        return torch.zeros(parameters, dtype=torch.float64)


class Wanders(Drifting):
    """Its server state is partly drawn at random."""

    def next_server_state(self, server_state: Tensor, mean: ReleasedMean) -> Tensor:
        return server_state + torch.randn_like(mean.vector)


@frozen
class GradientAndMore(Drifting):
    """It declares a gradient, and releases more."""

    def workload(self, federation_spec: FederationSpec) -> Workload:
        return evolve(super().workload(federation_spec), output="gradient")


class Owning(Local):
    """A good trainer with a tensor of the site's own: the mean of its images."""

    def train_own(self, task: LocalTask, own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {"mean": task.images.mean(0)}


class OwnReachesTheState(Owning):
    """It moves the state of the next round in place."""

    def made(self, task: LocalTask, before: Tensor) -> LocalResult:
        made = super().made(task, before)
        return LocalResult(vector=made.vector, weight=made.weight, state={"pull": torch.zeros(1)})

    def train_own(self, task: LocalTask, own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        for each in task.state.values():
            each.add_(task.images.mean())
        return {}


@frozen
class OwnReachesTheTrainer(Owning):
    """It remembers the site's own tensors on itself."""

    seen: list[float] = field(factory=list)

    def made(self, task: LocalTask, before: Tensor) -> LocalResult:
        made = super().made(task, before)
        return LocalResult(vector=made.vector + sum(self.seen), weight=made.weight)

    def train_own(self, task: LocalTask, own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        self.seen.append(float(task.images.mean()))
        return {}


class OwnImagesInPlace(Owning):
    """It standardises the site's images in place."""

    def train_own(self, task: LocalTask, own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        task.images.sub_(task.images.mean())
        return {}


class OneName(Owning):
    """Its state and its own tensors have one name."""

    def made(self, task: LocalTask, before: Tensor) -> LocalResult:
        made = super().made(task, before)
        return LocalResult(vector=made.vector, weight=made.weight, state={"mean": torch.zeros(1)})
