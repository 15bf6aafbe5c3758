"""The response of a server optimizer to noise in the releases of each round."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from cohortium.roles.protocols import Trainer

MAX_ROUNDS = 4096
"""Most rounds of a trial, whose cost grows with their square."""

DIGITS = 4
"""Significant digits of a response.  All parties compute equal digits on different processors."""


def noise_response(trainer: Trainer, rounds: int) -> tuple[float, ...]:
    """Return how far the server optimizer carries noise of each round.

    The function runs the optimizer on one parameter for each round, which has the gradient 1 in
    that round and 0 in the others.

    Args:
        trainer: The trainer, which makes the server optimizer.
        rounds: Number of rounds.

    Returns:
        The root of the summed squares of each parameter after each round.  Empty if the optimizer
        is not linear, or there are more than `MAX_ROUNDS` rounds.
    """
    import torch

    if rounds > MAX_ROUNDS:
        return ()
    # The second row has twice the gradients, and shows whether the optimizer is linear.
    parameter = torch.nn.Parameter(torch.zeros(2, rounds, dtype=torch.float64))
    optimizer, schedule = trainer.make_server_optimizer([parameter], rounds)
    squares = torch.zeros(rounds, dtype=torch.float64)
    try:
        for number in range(rounds):
            parameter.grad = torch.zeros_like(parameter)
            parameter.grad[:, number] = torch.tensor([1.0, 2.0], dtype=torch.float64)
            optimizer.step()
            schedule.step()
            once, twice = parameter.detach()
            if not torch.allclose(2 * once, twice, rtol=1e-6, atol=1e-300):
                return ()
            squares += once.square()
    except (TypeError, ValueError, RuntimeError):
        return ()  # because the optimizer needs more than a gradient
    found = tuple(float(f"{root:.{DIGITS - 1}e}") for root in squares.sqrt().tolist())
    return found if max(found) > 0 else ()


@frozen
class ServerTrial:
    """A trial of a server optimizer, which a call makes.

    Attributes:
        trainer: The trainer, which makes the server optimizer.
        rounds: Number of rounds.
    """

    trainer: Trainer
    rounds: int

    def __call__(self) -> tuple[float, ...]:
        """Return the `noise_response`."""
        return noise_response(self.trainer, self.rounds)
