"""A step of an optimizer at the server, as a trainer's parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen

from cohortium.learning.optimizers import (
    RATE,
    attach_schedule,
    check_optimizer,
    make_optimizer,
    valid_options,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler


@frozen(kw_only=True, slots=False)
class ServerStep:
    """Parameters of a trainer whose server gives the mean update to an optimizer.

    A trainer inherits them, next to its other bases.

    Attributes:
        server_optimizer: Optimizer that takes the mean update.  SGD at rate 1 is plain averaging.
        server_learning_rate: Learning rate of the server optimizer.
        server_optimizer_options: Further arguments of the server optimizer.
    """

    server_optimizer: str = "sgd"
    server_learning_rate: float = field(default=1.0, validator=RATE)
    server_optimizer_options: dict[str, float | bool] = field(factory=dict, validator=valid_options)

    def check_server_optimizer(self) -> None:
        """Refuse a server optimizer that cannot be made, before a run.

        Raises:
            StudyError: The optimizer does not exist, or refuses an option.
        """
        check_optimizer(
            self.server_optimizer, self.server_optimizer_options, key="server_optimizer_options"
        )

    def make_server_optimizer(
        self, parameters: Iterable[nn.Parameter], rounds: int
    ) -> tuple[Optimizer, LRScheduler]:
        """Build the server optimizer, at a constant rate.

        Args:
            parameters: Parameters that it moves.
            rounds: Rounds of the run.

        Raises:
            StudyError: The optimizer does not exist, or refuses an option.
        """
        optimizer = make_optimizer(
            self.server_optimizer,
            parameters,
            learning_rate=self.server_learning_rate,
            options=self.server_optimizer_options,
            key="server_optimizer_options",
        )
        return attach_schedule(optimizer, "constant", rounds)
