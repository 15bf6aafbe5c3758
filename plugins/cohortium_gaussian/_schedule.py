"""Noise that differs by round, for the same ε."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from cohortium.plugin import PrivacyError

if TYPE_CHECKING:
    from cohortium.plugin import FederationSpec, Workload

MAX_RATIO = 10.0
"""Largest ratio of a round's noise to the least noise.  Beyond it, little is left to gain."""

SLACK = 1e-9
"""Relative excess of the noise, for rounding."""


def noise_by_round(
    workload: Workload, federation_spec: FederationSpec, constant: float
) -> tuple[float, ...]:
    """Return the noise multiplier of each round, which together cost what equal ones cost.

    Independent releases without sampling cost Σ 1/σₜ².  The noise of round t enters the weights
    with the weight aₜ² (`Workload.noise_response`).  The sum Σ aₜ² σₜ² is least for σₜ² ∝ 1/aₜ.
    The retries are taken at the round with the least noise.

    Args:
        workload: The declaration of the trainer.
        federation_spec: The federation, as declared.
        constant: The multiplier that equal rounds would have.

    Raises:
        PrivacyError: The server optimizer is not linear, so its response is unknown.
    """
    response = workload.noise_response
    if len(response) != federation_spec.rounds:
        raise PrivacyError(
            "noise_schedule = 'optimizer' sizes the noise by a linear server optimizer, and this "
            "one is not linear (or the run is too long); use 'sgd' at the server, or "
            "noise_schedule = 'constant'."
        )
    largest = max(response)
    # A round that moves no weight of the labels releases something else, such as statistics.
    ratios = [min(MAX_RATIO, math.sqrt(largest / a)) if a else None for a in response]
    moved = [ratio for ratio in ratios if ratio is not None]
    retries, others = federation_spec.retries, len(ratios) - len(moved)
    cost = math.fsum(ratio**-2 for ratio in moved) + retries
    least = constant * math.sqrt(cost / (federation_spec.attempts - others)) * (1 + SLACK)
    return tuple(constant if ratio is None else least * ratio for ratio in ratios)
