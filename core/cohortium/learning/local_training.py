"""Steps of an optimizer at the sites, as a trainer's parameters and workload."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import ge, le

from cohortium.learning.optimizers import (
    RATE,
    Schedule,
    check_optimizer,
    make_optimizer,
    schedule_factor,
    valid_options,
)
from cohortium.roles.values import Workload

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn
    from torch.optim import Optimizer

    from cohortium.roles.values import FederationSpec, LocalTask


def local_workload(
    federation_spec: FederationSpec,
    *,
    epochs: int,
    steps: int,
    batch_size: int,
    has_mixed_examples: bool = False,
) -> Workload:
    """Return the workload of a trainer that releases an update.

    The trainer takes steps at the site.

    Args:
        federation_spec: The federation.  Its declared mean size of a site turns a batch size
            into a sampling rate.
        epochs: Passes over a site's own data each round.
        steps: Batches each round instead of whole passes.  0 means that `epochs` applies.
        batch_size: Examples in a batch.
        has_mixed_examples: Whether the loss of one example depends on others, as in MixUp.
    """
    rate = min(1.0, batch_size / federation_spec.examples_per_site)
    return Workload(
        output="update",
        steps=steps or epochs * math.ceil(1 / rate),
        sampling_rate=rate,
        batch_size=batch_size,
        epochs=None if steps else epochs,
        has_mixed_examples=has_mixed_examples,
    )


@frozen(kw_only=True, slots=False)
class LocalTraining:
    """Parameters of a trainer whose sites take steps of an optimizer.

    A trainer inherits them, next to its other bases.

    Attributes:
        local_epochs: Passes over a site's own data each round.
        local_steps: Batches each round instead of whole passes. 0 uses `local_epochs`.
        batch_size: Examples in a batch.  Under example-level privacy batches are Poisson samples.
            Their rate is this number over the *declared* mean size of a site.  Then `local_epochs`
            passes are the number of steps that this makes, the same at every site.
        optimizer: Optimizer at the sites, any of `torch.optim`.  It starts afresh every round.
        learning_rate: Learning rate of that optimizer.
        optimizer_options: Further arguments of that optimizer.
        schedule: Schedule of the sites' learning rate, over the rounds.
    """

    local_epochs: int = field(default=1, validator=[ge(1), le(10_000)])
    local_steps: int = field(default=0, validator=[ge(0), le(10_000_000)])
    batch_size: int = field(default=32, validator=[ge(1), le(1 << 24)])
    optimizer: str = "sgd"
    learning_rate: float = field(default=0.05, validator=RATE)
    optimizer_options: dict[str, float | bool] = field(factory=dict, validator=valid_options)
    schedule: Schedule = "constant"

    def workload(self, federation_spec: FederationSpec) -> Workload:
        """Declare Poisson steps for private runs, otherwise shuffled passes or steps.

        Args:
            federation_spec: The federation, as declared.

        Raises:
            StudyError: The optimizer does not exist, or refuses an option.
        """
        check_optimizer(self.optimizer, self.optimizer_options)
        return local_workload(
            federation_spec,
            epochs=self.local_epochs,
            steps=self.local_steps,
            batch_size=self.batch_size,
        )

    def rate_in(self, round: int, rounds: int) -> float:  # noqa: A002
        """Return the sites' learning rate in a round.

        Args:
            round: Number of the round.
            rounds: Rounds of the run.
        """
        return self.learning_rate * schedule_factor(self.schedule, round, rounds)

    def make_local_optimizer(
        self, parameters: Iterable[nn.Parameter], task: LocalTask
    ) -> Optimizer:
        """Make the optimizer of a site's round.

        Args:
            parameters: Parameters that it moves.
            task: The round's task, whose number decides the learning rate.
        """
        return make_optimizer(
            self.optimizer,
            parameters,
            learning_rate=self.rate_in(task.round, task.rounds),
            options=self.optimizer_options,
        )
