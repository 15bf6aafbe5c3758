"""A substitute for a site's privatizer, and a training round under it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
from attrs import define, field

from cohortium import parameters
from cohortium.clipping.clipped_sum import mean_gradient
from cohortium.data.intensity import to_unit_range
from cohortium.roles.values import FederationSpec, LocalTask
from cohortium.rounds.server_state import initial_server_state
from cohortium.testing import samples
from cohortium.testing.contract import ConformanceError, ensure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import NoReturn

    from torch import Tensor, nn

    from cohortium.data.examples import Examples
    from cohortium.roles.protocols import Trainer
    from cohortium.roles.values import ExampleIndices, LocalResult, Workload

Result = TypeVar("Result")

EXAMPLES = 64
"""Number of examples of the probed site, and declared number of every site."""

COHORT = FederationSpec(sites=4, cohort_size=4, examples=4 * EXAMPLES, rounds=2)
"""The cohort for which a trainer declares its workload."""


@define(eq=False)
class ProbePrivatizer:
    """A `SitePrivatizer` that yields given batches, sets gradients, and records.

    Attributes:
        yields: The round's batches.
        fill: Value of every element of the gradient.  None for the mean gradient.
        asked: The number of examples in each call of `batches`.
        taken: Number of batches yielded.
        seen: Every batch passed to `set_private_gradient`, with its losses.
    """

    yields: Sequence[ExampleIndices] = field(repr=False)
    fill: float | None = 0.0
    asked: list[int] = field(factory=list)
    taken: int = 0
    seen: list[tuple[ExampleIndices, Tensor]] = field(factory=list, repr=False)

    def batches(self, examples: int) -> Iterator[ExampleIndices]:
        """Yield the given batches."""
        self.asked.append(examples)
        for batch in self.yields:
            self.taken += 1
            yield batch

    def set_private_gradient(
        self, net: nn.Module, losses: Callable[[ExampleIndices], Tensor], batch: ExampleIndices
    ) -> None:
        """Record the losses, and set `.grad`."""
        import torch

        if len(batch):
            values = losses(batch)
            ensure(
                values.shape == (len(batch),),
                f"losses gave shape {tuple(values.shape)} for {len(batch)} examples; it must give "
                "one value for each, the copies of an augmented example inside it.",
            )
            self.seen.append((batch, values.detach().clone()))
        else:
            self.seen.append((batch, torch.zeros(0)))
        if self.fill is None:
            mean_gradient(net, losses, batch)
            return
        for parameter in parameters.trainable(net):
            parameter.grad = torch.full_like(parameter, self.fill)

    def release(self, vector: Tensor, weight: float) -> NoReturn:  # noqa: ARG002
        """Refuse the call, because a trainer must not release."""
        raise ConformanceError(
            "the trainer called release, which draws noise and spends privacy; return the vector "
            "in LocalResult, and the site releases it once."
        )


def declared_workload(trainer: Trainer) -> Workload:
    """Return the workload that `trainer` declares for the sample cohort."""
    return trainer.workload(COHORT)


def poisson_batches(workload: Workload, *, always: int | None = None) -> list[ExampleIndices]:
    """Return `workload.steps` Poisson batches, with example `always` in each."""
    rng = np.random.default_rng(0)
    drawn = [
        np.flatnonzero(rng.random(EXAMPLES) < workload.sampling_rate).astype(np.int64)
        for _ in range(workload.steps)
    ]
    return drawn if always is None else [np.union1d(batch, [always]) for batch in drawn]


def train(
    trainer: Trainer,
    probe: ProbePrivatizer,
    *,
    net: nn.Module | None = None,
    data: Examples | None = None,
    round: int = 0,  # noqa: A002
    state: Mapping[str, Tensor] | None = None,
) -> LocalResult:
    """Train one round at one site, as the site's state machine does."""
    task = local_task(trainer, net=net, data=data, round=round, state=state)
    return on_unchanged_data(task, lambda: trainer.train(task, probe))


def local_task(
    trainer: Trainer,
    *,
    net: nn.Module | None = None,
    data: Examples | None = None,
    round: int = 0,  # noqa: A002
    state: Mapping[str, Tensor] | None = None,
) -> LocalTask:
    """Return the task of one round at one site, with the first server state."""
    import torch

    data = samples.examples(EXAMPLES) if data is None else data
    net = samples.network() if net is None else net
    spec = samples.spec(*data.images.shape[1:])
    return LocalTask(
        net=net.train(),
        images=to_unit_range(data.images, spec),
        labels=torch.from_numpy(data.labels),
        spec=spec,
        round=round,
        rounds=COHORT.rounds,
        workload=declared_workload(trainer),
        generator=torch.Generator().manual_seed(round),
        state={} if state is None else state,
        server_state=initial_server_state(trainer, parameters.length(net)),
    )


def on_unchanged_data(task: LocalTask, work: Callable[[], Result]) -> Result:
    """Return the result of a trainer's `work`, which must leave the task's data as they are."""
    import torch

    kept = task.images.clone(), task.labels.clone()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.round)
        result = work()
    ensure(
        torch.equal(kept[0], task.images) and torch.equal(kept[1], task.labels),
        "training changed the site's images or labels, which later rounds use; work on copies.",
    )
    return result
