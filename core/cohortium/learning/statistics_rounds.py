"""Statistics rounds: private training on statistics of the images, before the usual rounds.

A network may have a **statistics loss**: a method `statistics_loss(inputs)` that returns a loss
for each input and ignores its label.  Parameters of its own lower this loss.

A network whose attribute `needs_labels` is true has a method `statistics_loss(inputs, labels)`.  It
learns from the statistics rounds alone, and further rounds are optional.

Statistics of the data can be computed in this way.  With the loss -wᵀφ(x), a mean gradient is
minus the mean of φ.  It is clipped, noised, summed and paid for like any other gradient.

A trainer spends its first rounds on the statistics loss.  The server's result for these
parameters is the mean of the steps of these rounds.  The other parameters do not move in these
rounds.  Afterwards only the other parameters move.
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

_MARK = "cohortium_statistics"


def mark_statistics_parameters(layer: nn.Module) -> None:
    """Mark the parameters of `layer` as parameters of the statistics loss."""
    for parameter in layer.parameters():
        setattr(parameter, _MARK, True)


def is_statistics_parameter(parameter: nn.Parameter) -> bool:
    """Return whether only statistics rounds train `parameter`."""
    return getattr(parameter, _MARK, False) is True


def statistics_losses(task: LocalTask) -> Callable[[ExampleIndices], Tensor]:
    """Return a function for the statistics loss of each example.

    The function takes positions, and returns losses of shape (B,).

    Args:
        task: A site's task in one round.

    Raises:
        StudyError: The network has no statistics loss.
    """
    import torch

    statistics_loss: Callable[..., Tensor] | None = getattr(task.net, "statistics_loss", None)
    if statistics_loss is None:
        raise StudyError(
            "the trainer has statistics rounds, and the model has none; set "
            "trainer.statistics_rounds to 0, or choose a model with one (descriptor with "
            "private_whitening = true, or moments)."
        )

    def losses(batch: ExampleIndices) -> Tensor:
        assert statistics_loss is not None
        index = torch.from_numpy(batch).to(task.images.device)
        labels = (task.labels[index],) if learns_labels(task.net) else ()
        return statistics_loss(task.images[index], *labels)

    return losses


def learns_labels(net: nn.Module) -> bool:
    """Return whether the statistics loss of `net` takes labels."""
    return getattr(net, "needs_labels", False) is True


def require_label_rounds(task: LocalTask, statistics_rounds: int) -> None:
    """Refuse a run that ends before its network has learned from labels.

    Args:
        task: A site's task in one round.
        statistics_rounds: The trainer's number of statistics rounds.

    Raises:
        StudyError: All rounds are statistics rounds, and the statistics loss takes no labels.
    """
    if statistics_rounds >= task.rounds and not learns_labels(task.net):
        raise StudyError(
            f"trainer.statistics_rounds = {statistics_rounds} leaves none of {task.rounds} rounds "
            "for labels."
        )


def reject_statistics_rounds(parameters: Iterable[nn.Parameter], trainer: str) -> None:
    """Refuse a network with a statistics loss, for a trainer without statistics rounds.

    Such a trainer would add noise to the statistics parameters and move them in every round.

    Args:
        parameters: Parameters of the network.
        trainer: Name of the trainer in the error.

    Raises:
        StudyError: The network has a statistics loss.
    """
    if any(map(is_statistics_parameter, parameters)):
        raise StudyError(
            f"the model has a statistics loss, and trainer '{trainer}' has no rounds for it; "
            "use 'fedsgd'."
        )


def unused_statistics(trainer: object, net: nn.Module) -> tuple[str, ...]:
    """Return a warning if `net` has a statistics loss, and `trainer` spends no round on it.

    Args:
        trainer: The trainer, with or without statistics rounds.
        net: The network that it trains.
    """
    is_unused = getattr(trainer, "statistics_rounds", None) == 0
    if not (is_unused and any(map(is_statistics_parameter, net.parameters()))):
        return ()
    sentence = (
        "trainer.statistics_rounds is 0, so the model learns nothing from statistics of the images "
        "(private_whitening, or moments); set it to 1 or more, or choose a model without them."
    )
    return (sentence,)


def attach_statistics_rounds(optimizer: Optimizer, course: LRScheduler, rounds: int) -> None:
    """Reserve the first `rounds` of the server's `optimizer` for the statistics loss.

    In these rounds the statistics parameters take steps of 1/rounds, without momentum, and no
    other parameter moves.  Later the statistics parameters do not move.

    Args:
        optimizer: The server's optimizer.
        course: Schedule of its learning rate, which counts the rounds.
        rounds: Number of statistics rounds.
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
