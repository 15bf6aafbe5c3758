"""Optimizers by name, their schedules, and the mean of their last weights."""

from __future__ import annotations

import inspect
import math
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from attrs.validators import ge, le

from cohortium.errors import StudyError
from cohortium.text import did_you_mean, escape_control_characters, quote_key, truncate

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from attrs import Attribute
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

Schedule = Literal["constant", "linear", "cosine"]
"""Course of a learning rate over the rounds.

It stays constant, or falls to zero.
"""


def schedule_factor(schedule: Schedule, round: int, rounds: int) -> float:  # noqa: A002
    """Return the learning rate's factor by `schedule` in `round` of `rounds`.

    Examples:
        >>> schedule_factor("linear", 15, 60)
        0.75
    """
    if schedule == "linear":
        return 1 - round / rounds
    if schedule == "cosine":
        return (1 + math.cos(math.pi * round / rounds)) / 2
    return 1.0


RATE: Any = (ge(1e-12), le(1e6))
"""Validators of attrs for a learning rate."""

MAX_OPTIONS = 16


def valid_options(_: object, attribute: Attribute[Any], given: Mapping[str, float | bool]) -> None:
    """Refuse arguments of an optimizer that are not usable numbers.

    A validator of attrs, for tables such as `[trainer.optimizer_options]`.

    Args:
        _: The instance.
        attribute: The parameter.
        given: Its value.

    Raises:
        ValueError: There are too many, or one is not such a number.
    """
    if len(given) > MAX_OPTIONS:
        raise ValueError(f"'{attribute.name}' has more than {MAX_OPTIONS} entries")
    for key, value in given.items():
        if not abs(value) <= MAX_OPTION:
            raise ValueError(
                f"'{attribute.name}' has {quote_key(key)} = {value!r}; give a number from "
                f"-{MAX_OPTION:g} to {MAX_OPTION:g}"
            )


MAX_OPTION = 1e6


WITH_MOMENTUM = ("muon", "rmsprop", "sgd")
"""Optimizers of `torch.optim` that have an option `momentum`."""


def default_momentum(optimizer: str, momentum: float) -> dict[str, float | bool]:
    """Return the default options of a trainer that sets a momentum, for its optimizer.

    Args:
        optimizer: Name of the optimizer, in upper or lower case.
        momentum: The momentum, which an optimizer without one does not get.

    Examples:
        >>> default_momentum("sgd", 0.9), default_momentum("adam", 0.9)
        ({'momentum': 0.9}, {})
    """
    return {"momentum": momentum} if optimizer.lower() in WITH_MOMENTUM else {}


def check_optimizer(
    name: str, options: Mapping[str, float | bool], *, key: str = "optimizer_options"
) -> None:
    """Refuse an optimizer that cannot be made, before a run.

    Args:
        name: Name of its class in `torch.optim`.
        options: Its keyword arguments in addition to the learning rate.
        key: The trainer's parameter that holds the options.

    Raises:
        StudyError: There is no optimizer of that name, or it refuses an option.
    """
    import torch

    parameter = torch.nn.Parameter(torch.zeros(1, 1))
    make_optimizer(name, [parameter], learning_rate=1e-3, options=options, key=key)


def make_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter],
    *,
    learning_rate: float,
    options: Mapping[str, float | bool],
    key: str = "optimizer_options",
) -> Optimizer:
    """Make the optimizer of `torch.optim` called `name`, in upper or lower case.

    Args:
        name: Name of its class.
        parameters: Parameters that it moves.
        learning_rate: Its `lr`.
        options: Its other keyword arguments.
        key: The trainer's parameter that holds the options, for an error.

    Raises:
        StudyError: There is no optimizer of that name, or it has no such option.
    """
    kinds = _optimizers()
    kind = kinds.get(name.lower())
    if kind is None:
        raise StudyError(
            f"torch.optim has no optimizer {truncate(name)}; {did_you_mean(name.lower(), kinds)}"
        )
    known = _parameters_of(name.lower())
    for option in options:
        if option not in known or option == "params":
            raise StudyError(
                f"trainer.{key}: the optimizer {name.lower()} has no option {quote_key(option)}; "
                f"its options are {', '.join(_options_of(known))}."
            )
    moved = list(parameters)
    arguments: dict[str, Any] = {"lr": learning_rate, **options}
    is_open = "foreach" in known and not {"foreach", "fused"} & options.keys()
    if is_open and all(parameter.device.type == "cpu" for parameter in moved):
        # Torch would decide the same in every step, a quarter of its time for a small network.
        arguments["foreach"] = False
    try:
        return kind(moved, **arguments)
    except (TypeError, ValueError) as error:
        raise StudyError(
            f"optimizer {truncate(name)}: {escape_control_characters(str(error))}."
        ) from error


@cache
def _optimizers() -> dict[str, type[Optimizer]]:
    """Return the optimizers of torch by name in lower case.

    It is kept, as a site makes an optimizer in every round.
    """
    import torch

    return {
        name.lower(): kind
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type)
        and issubclass(kind, torch.optim.Optimizer)
        and kind is not torch.optim.Optimizer
    }


@cache
def _parameters_of(name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(_optimizers()[name]).parameters


def _options_of(known: Mapping[str, inspect.Parameter]) -> list[str]:
    """Return the options of an optimizer that a number can be."""
    return sorted(
        option
        for option, parameter in known.items()
        if option not in ("params", "lr") and not isinstance(parameter.default, tuple)
    )


def attach_schedule(
    optimizer: Optimizer, schedule: Schedule, rounds: int, *, after: int = 0
) -> tuple[Optimizer, LRScheduler]:
    """Return `optimizer`, and the schedule of its learning rate that `schedule` names.

    The schedule covers `rounds` steps in all.  The first `after` of them have the full rate.  All
    of them may.
    """
    import torch

    def course(step: int) -> float:
        return schedule_factor(schedule, max(0, step - after), max(1, rounds - after))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, course)


def attach_weight_averaging(optimizer: Optimizer, *, rounds: int, share: float) -> None:
    """End a run with the mean of its last weights.

    Without this, a run ends with the last weights.

    After step `rounds` of the server's `optimizer`, every parameter becomes a mean of its own
    values.  The mean covers the values after each of the last `share` of the steps (Polyak and
    Juditsky 1992).

    The mean uses only weights that sites have received before, so it costs no privacy.  It removes
    some of the noise of private training.  The optimizer's state holds the mean so far.
    """
    import torch

    first = rounds - round(share * rounds)

    def after(stepping: Optimizer, *_: object) -> None:
        for parameter in (p for group in stepping.param_groups for p in group["params"]):
            state = stepping.state[parameter]
            done = state["rounds_done"] = state.get("rounds_done", 0) + 1
            if done <= first:
                continue
            with torch.no_grad():
                mean = state.setdefault("average", torch.zeros_like(parameter))
                mean.lerp_(parameter, 1 / (done - first))
                if done == rounds:
                    parameter.copy_(mean)

    if share:
        optimizer.register_step_post_hook(after)
