"""Server optimizers that `torch.optim` lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor, nn

    from cohortium_fedavg._adaptive import Rule


class CumulativeSGD(Optimizer):
    """A step by the gradient, and by `share` times the sum of all gradients so far.

    It is the server of FedDyn, whose h is -α·share times that sum of mean updates.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, share: float) -> None:
        """Take the parameters, and the share of the sites in a round."""
        super().__init__(parameters, {"lr": 1.0, "share": share})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Take one step."""
        for group in self.param_groups:
            for parameter, gradient in _moving(group):
                total = self.state[parameter].setdefault("sum", torch.zeros_like(parameter))
                total.add_(gradient, alpha=group["share"])
                parameter.sub_(gradient + total, alpha=group["lr"])


class AdaptiveServerOptimizer(Optimizer):
    """FedAdagrad, FedAdam and FedYogi (Reddi et al. 2021, algorithm 2).

    Unlike `torch.optim.Adam` they correct no bias.  The second moment begins at τ², and τ is added
    to its root.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        rule: Rule,
        lr: float,
        betas: tuple[float, float],
        tau: float,
    ) -> None:
        """Take the parameters, and the numbers of the paper.

        Args:
            parameters: Parameters of the global network.
            rule: Course of the second moment.
            lr: η, the learning rate.
            betas: β₁ and β₂, the decay of both moments.  Adagrad has no β₂.
            tau: τ, the degree of adaptivity.
        """
        super().__init__(parameters, {"lr": lr, "betas": betas, "tau": tau})
        self._rule = rule

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Take one step."""
        for group in self.param_groups:
            (first, second), tau = group["betas"], group["tau"]
            for parameter, gradient in _moving(group):
                state = self.state[parameter]
                if not state:
                    state["mean"] = torch.zeros_like(parameter)
                    state["square"] = torch.full_like(parameter, tau**2)
                square = state["square"]
                state["mean"].lerp_(gradient, 1 - first)
                squared = gradient.square()
                if self._rule == "adagrad":
                    square.add_(squared)
                elif self._rule == "adam":
                    square.lerp_(squared, 1 - second)
                else:
                    square.addcmul_(squared, (square - squared).sign(), value=second - 1)
                parameter.addcdiv_(state["mean"], square.sqrt().add_(tau), value=-group["lr"])


def _moving(group: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """Return the parameters that have a gradient, and their gradients."""
    return [(each, each.grad) for each in group["params"] if each.grad is not None]
