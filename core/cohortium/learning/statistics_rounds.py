"""Rounds before labels: what a network learns from images alone, under the same privacy.

A network may have a **prelude**: a method `prelude(inputs)` that gives a loss for each input, with
no regard to its label, and parameters of its own that lower it.  Statistics of the data can be had
so: with the loss -wᵀφ(x), a mean gradient is minus the mean of φ, clipped, noised and summed like
any other, and paid for as one.

A trainer spends its first rounds on it.  What the server learns in them is the mean of these
rounds' steps; the other parameters wait, and when they move, those of the prelude stand still.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohortium.errors import StudyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from cohortium.roles.values import ExampleIndices, LocalTask

_MARK = "cohortium_prelude"


def mark_statistics_parameters(layer: nn.Module) -> None:
    """Mark the parameters of `layer` as the prelude's."""
    for parameter in layer.parameters():
        setattr(parameter, _MARK, True)


def is_statistics_parameter(parameter: nn.Parameter) -> bool:
    """Whether `parameter` is learned in the prelude, and only there."""
    return getattr(parameter, _MARK, False) is True


def statistics_losses(task: LocalTask) -> Callable[[ExampleIndices], Tensor]:
    """The prelude's loss of each example at some positions, shape (B,).

    Args:
        task: A site's round.

    Raises:
        StudyError: The network has no prelude.
    """
    import torch

    prelude: Callable[[Tensor], Tensor] | None = getattr(task.net, "prelude", None)
    if prelude is None:
        raise StudyError(
            "the trainer has statistics rounds, and the model has none; set "
            "trainer.statistics_rounds to 0, "
            "or choose a model with one (descriptor with private_whitening = true)."
        )

    def losses(batch: ExampleIndices) -> Tensor:
        assert prelude is not None
        return prelude(task.images[torch.from_numpy(batch).to(task.images.device)])

    return losses


def reject_statistics_rounds(parameters: Iterable[nn.Parameter], trainer: str) -> None:
    """Refuse a network with a prelude, for a trainer that would noise and move it all the time.

    Args:
        parameters: The network's.
        trainer: How the error names the trainer.

    Raises:
        StudyError: It has one.
    """
    if any(map(is_statistics_parameter, parameters)):
        raise StudyError(
            f"the model has a prelude, and trainer '{trainer}' has no rounds for it; use 'fedsgd'."
        )


def attach_statistics_rounds(optimizer: Optimizer, course: LRScheduler, rounds: int) -> None:
    """Give the first `rounds` of the server's `optimizer` to the prelude.

    In them the prelude's parameters take steps of 1/rounds, without momentum, and nothing else
    moves; later the prelude's do not.

    Args:
        optimizer: The server's.
        course: Of its learning rate, which counts the rounds.
        rounds: Of prelude.
    """
    import torch

    def before(stepping: Optimizer, *_: object) -> None:
        is_first = course.last_epoch < rounds
        for parameter in (p for group in stepping.param_groups for p in group["params"]):
            its = is_statistics_parameter(parameter)
            if its and is_first and parameter.grad is not None:
                with torch.no_grad():
                    parameter.sub_(parameter.grad / rounds)
            if its or is_first:
                parameter.grad = None

    optimizer.register_step_pre_hook(before)
