"""Adaptive federated optimization (Reddi et al. 2021), and server momentum (Hsu et al. 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from attrs import field, frozen
from attrs.validators import ge, gt, le, lt

from cohortium.plugin import RATE, attach_schedule, make_optimizer
from cohortium_fedavg._local_steps import LocalSteps

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

Rule = Literal["adagrad", "adam", "yogi"]
"""Course of the second moment."""

_DECAY: Any = (ge(0), lt(1))
_TAU: Any = (gt(0), ge(1e-9), le(1))


@frozen(kw_only=True)
class FedAvgM(LocalSteps):
    """Local steps, and momentum at the server.

    Attributes:
        server_learning_rate: Learning rate of the server.
        server_momentum: Its momentum.
    """

    server_learning_rate: float = field(default=1.0, validator=RATE)
    server_momentum: float = field(default=0.9, validator=_DECAY)

    def make_server_optimizer(
        self, parameters: Iterable[nn.Parameter], rounds: int
    ) -> tuple[Optimizer, LRScheduler]:
        """Build the server optimizer, at a constant rate."""
        optimizer = make_optimizer(
            "sgd",
            parameters,
            learning_rate=self.server_learning_rate,
            options={"momentum": self.server_momentum},
        )
        return attach_schedule(optimizer, "constant", rounds)


@frozen(kw_only=True)
class FedAdagrad(LocalSteps):
    """Local steps, and Adagrad at the server.

    Attributes:
        server_learning_rate: η, the learning rate of the server.
        beta_1: β₁, the decay of the first moment.
        tau: τ, the degree of adaptivity.  A smaller one adapts more.
    """

    rule: ClassVar[Rule] = "adagrad"

    server_learning_rate: float = field(default=0.03, validator=RATE)
    beta_1: float = field(default=0.0, validator=_DECAY)
    tau: float = field(default=1e-3, validator=_TAU)

    def make_server_optimizer(
        self, parameters: Iterable[nn.Parameter], rounds: int
    ) -> tuple[Optimizer, LRScheduler]:
        """Build the server optimizer, at a constant rate."""
        from cohortium_fedavg._server_optimizers import AdaptiveServerOptimizer

        optimizer = AdaptiveServerOptimizer(
            parameters,
            rule=self.rule,
            lr=self.server_learning_rate,
            betas=(self.beta_1, self._beta_2),
            tau=self.tau,
        )
        return attach_schedule(optimizer, "constant", rounds)

    @property
    def _beta_2(self) -> float:
        return 0.0


@frozen(kw_only=True)
class FedAdam(FedAdagrad):
    """Local steps, and Adam at the server.

    Attributes:
        beta_1: β₁, the decay of the first moment.
        beta_2: β₂, the decay of the second moment.
    """

    rule: ClassVar[Rule] = "adam"

    beta_1: float = field(default=0.9, validator=_DECAY)
    beta_2: float = field(default=0.99, validator=_DECAY)

    @property
    def _beta_2(self) -> float:
        return self.beta_2


@frozen(kw_only=True)
class FedYogi(FedAdam):
    """Local steps, and Yogi at the server, whose second moment falls slowly."""

    rule: ClassVar[Rule] = "yogi"
