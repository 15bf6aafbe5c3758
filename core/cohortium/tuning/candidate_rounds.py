"""Length of a candidate, so that its best settings are those of the final run.

A candidate has less of ε than the final run, so its rounds have more noise.
In a run of the same length, it would prefer a smaller rate than the final run does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import attrs

from cohortium.errors import PrivacyError
from cohortium.learning.noise_response import noise_response
from cohortium.privacy.mechanisms import ORDERS

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from cohortium.federation import Federation
    from cohortium.privacy.mechanisms import Mechanism
    from cohortium.roles.protocols import Trainer

_ORDER = ORDERS.index(2)


def shorten(study: Federation, rounds: int) -> Federation:
    """Return the study with fewer rounds, and with the same share of statistics rounds.

    Args:
        study: The study.
        rounds: Rounds, at most as many as it has.
    """
    return attrs.evolve(study, rounds=rounds, trainer=_trainer_for(study, rounds))


def equal_noise_rounds(study: Federation, *, limit: int, price: float) -> int:
    """Return the rounds of a candidate whose weights are as noisy as those of the final run.

    The noise of a release grows with the number of releases n that share a budget.
    Its variance is n/D for a Rényi divergence D of the whole run.
    The server optimizer carries noise of round t into the weights with the factor Aₜ²
    (`noise_response`).
    So they have the mean variance V(n) = n/D · Σ Aₜ²/n over a run.
    The result is the largest n with V(n) at most that of the final run.

    Noise in the weights matters by its absolute size, as an output changes with the logits.
    In simulations, the best rate left about the same noise in the weights for any budget
    (docs/tuning.md).  At this length, a candidate with the final run's rate does so.
    Its weights move less far, and its score is lower.

    An optimizer that is not linear counts as one that adds each gradient to the weights once.
    Where rounds differ in noise, the function takes them for equal.

    Args:
        study: The study with its own trainer and rounds, which stands for the final run.
        limit: Largest result.
        price: Divergence of a candidate over that of the final run.
    """
    allowed = price * _variance(study, study.rounds)
    low, high = 1 if _statistics(study.trainer) in (0, study.rounds) else 2, limit
    # The variance rises with the rounds.
    while low < high:
        middle = (low + high + 1) // 2
        if _variance(study, middle) <= allowed:
            low = middle
        else:
            high = middle - 1
    return min(low, limit)


def divergence(spends: Iterable[tuple[Mechanism, int]]) -> float:
    """Return the Rényi divergence of order 2 of releases.

    Args:
        spends: Mechanisms with their numbers.

    Raises:
        PrivacyError: It has no bound.
    """
    total = sum(float(mechanism.rdp_curve[_ORDER]) * times for mechanism, times in spends)
    if not 0 < total < float("inf"):
        raise PrivacyError(
            "[tune]: the noise of this privatizer has no bound by which candidates could be "
            "shortened; set rounds."
        )
    return total


def _variance(study: Federation, rounds: int) -> float:
    """Return the mean variance of the weights' noise over a run, for a divergence of 1."""
    response = noise_response(_trainer_for(study, rounds), rounds)
    moved = [each**2 for each in response if each]
    if not moved:
        return float(rounds**2)
    return rounds * sum(moved) / len(moved)


def _trainer_for(study: Federation, rounds: int) -> Trainer:
    """Return the study's trainer for a run of `rounds`."""
    statistics = _statistics(study.trainer)
    if not statistics:
        return study.trainer
    short = max(1, round(statistics * rounds / study.rounds))
    changed: Trainer = attrs.evolve(cast("Any", study.trainer), statistics_rounds=short)
    return changed


def _statistics(trainer: Trainer) -> int:
    """Return the number of a trainer's statistics rounds, 0 for one that has none."""
    return int(getattr(trainer, "statistics_rounds", 0))
