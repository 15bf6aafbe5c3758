"""Federated averaging (McMahan et al. 2017), FedProx (Li et al. 2020), Ditto (Li et al. 2021)."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import ge, le

from cohortium.plugin import (
    FederationSpec,
    LocalTask,
    ServerStep,
    Workload,
    attach_weight_averaging,
    make_optimizer,
    mean_gradient,
    parameters,
)
from cohortium_fedavg._local_steps import Drift, LocalSteps

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler


@frozen(kw_only=True)
class FedAvg(ServerStep, LocalSteps):
    """Sites train locally.  The server moves by the mean of their updates.

    Attributes:
        average_last_fraction: Share of the rounds, the last ones, whose weights are averaged in the
            end.
    """

    average_last_fraction: float = field(default=0.0, validator=[ge(0), le(1)])

    def workload(self, federation_spec: FederationSpec) -> Workload:
        """Declare Poisson steps for private runs, otherwise shuffled passes or steps.

        Raises:
            StudyError: An optimizer does not exist, or refuses an option.
        """
        self.check_server_optimizer()
        return LocalSteps.workload(self, federation_spec)

    def make_server_optimizer(
        self, parameters: Iterable[nn.Parameter], rounds: int
    ) -> tuple[Optimizer, LRScheduler]:
        """Build the server optimizer, at a constant rate."""
        optimizer, course = ServerStep.make_server_optimizer(self, parameters, rounds)
        attach_weight_averaging(optimizer, rounds=rounds, share=self.average_last_fraction)
        return optimizer, course


@frozen(kw_only=True)
class FedProx(FedAvg):
    """`FedAvg` with a pull μ(w - w_global) towards the global weights.

    Attributes:
        mu: μ, the strength of the pull.  It depends on no data, so it costs no privacy.
    """

    mu: float = field(default=0.01, validator=[ge(0), le(1e6)])

    def _drift(self, task: LocalTask) -> Drift:  # noqa: ARG002
        """Return the pull, which the privatizer's gradients get afterwards."""
        return Drift(pull=self.mu)


OWN_MODEL = "ditto.model"
"""Name of a site's own network among its tensors."""


@frozen(kw_only=True)
class Ditto(FedAvg):
    """`FedAvg`, and at each site a network of its own that stays near the global one.

    The global network is that of `fedavg`.  In each round, a site also trains its own network.  A
    pull λ(v - w_global) keeps it near the round's global weights (Li et al. 2021).  The site itself
    uses that network (`personalize`).

    Guarantees:
        A site's own network never leaves it, and nothing that leaves it depends on that network.
        So the own network is trained without noise, and costs no privacy.

    Attributes:
        own_pull: λ, the strength of the pull.  At 0 a site trains alone.
        own_epochs: Passes over the site's data for its own network, each round.
        own_learning_rate: Learning rate of its SGD.  0 takes `learning_rate`.
    """

    own_pull: float = field(default=0.1, validator=[ge(0), le(1e6)])
    own_epochs: int = field(default=1, validator=[ge(1), le(10_000)])
    own_learning_rate: float = field(default=0.0, validator=[ge(0), le(1e6)])

    def train_own(self, task: LocalTask, own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Train the site's own network for one round.  See `OwnModelTrainer`."""
        import torch

        before = parameters.flatten(task.net)
        if own:
            parameters.load(task.net, own[OWN_MODEL])
        optimizer = make_optimizer(
            "sgd",
            parameters.trainable(task.net),
            learning_rate=self.own_learning_rate or self.rate_in(task.round, task.rounds),
            options={},
        )
        losses, drift = self.augmented_loss.losses(task), Drift(pull=self.own_pull)
        size, fewest = self.batch_size, task.workload.fewest
        for _ in range(self.own_epochs):
            order = torch.randperm(len(task.labels), generator=task.generator).numpy()
            for start in range(0, len(order), size):
                batch = order[start : start + size]
                if len(batch) < fewest:
                    continue
                mean_gradient(task.net, losses, batch)
                drift.add_to_gradients(task.net, before)
                optimizer.step()
        return {OWN_MODEL: parameters.flatten(task.net)}

    def personalize(self, net: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
        """Return the site's own network, or the global one before the first round."""
        if OWN_MODEL not in state:
            return net
        own = copy.deepcopy(net)
        parameters.load(own, state[OWN_MODEL])
        return own
