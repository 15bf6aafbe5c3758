"""Exact statistics on right and wrong guesses, without any normal approximation.

    epsilon_bound(Counts(true_positives=900, false_positives=20, trials=1000), delta=1e-5,
    alpha=0.001)

An adversary guesses the world from its observations. Under (ε, δ)-differential privacy, its guesses
must satisfy

    P[guess "there" | there]  ≤  e^ε · P[guess "there" | not there] + δ

Sources: Wasserman, Zhou 2010, and Kairouz, Oh, Viswanath 2015. Each world is tried `trials` times.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_EPSILON = 50.0
"""Largest ε considered. No possible count says anything beyond it."""

_TINY = 1e-150
"""Smallest probability considered. Lower ones count as this one. Its square still exceeds zero."""


@frozen(kw_only=True)
class Counts:
    """Numbers of guesses "there" by the adversary.

    Attributes:
        true_positives: In trials where the unit was there.
        false_positives: In trials where it was not.
        trials: In each of the two worlds.
    """

    true_positives: int
    false_positives: int
    trials: int


def p_value(counts: Counts, *, epsilon: float, delta: float) -> float:
    """Return an upper bound on the chance of such counts.

    The bound covers these counts and stranger ones, if the claim (ε, δ) is true. Let p₀ be the
    chance of an alarm. Under the claim, the chance of a hit is at most c = e^ε·p₀ + δ. The tails
    a = P[Bin(n, p₀) ≤ alarms] and b = P[Bin(n, c) ≥ hits] are p-values of independent counts.
    Therefore P[a·b ≤ t] ≤ t·(1 - ln t) (Fisher 1932). The largest such value over p₀ is valid for
    every p₀. This method needs far fewer trials than two Clopper-Pearson intervals, each of which
    needs the whole confidence alone.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import bdtr, bdtrc

    n, factor = counts.trials, math.exp(min(epsilon, MAX_EPSILON))
    if counts.true_positives <= factor * counts.false_positives + delta * n:
        return 1.0  # the counts agree with the claim: no need to say how well

    def quiet(chance: float) -> float:
        return float(bdtr(counts.false_positives, n, chance))

    def loud(chance: float) -> float:
        return float(bdtrc(counts.true_positives - 1, n, min(1.0, factor * chance + delta)))

    # `quiet` falls and `loud` rises. They meet at v, where their product is v². If either is below
    # v², the product is smaller than that.
    meeting = _crossing(lambda chance: quiet(chance) - loud(chance), 0.0, 1.0)
    v = max(quiet(meeting), loud(meeting))
    if v < _TINY:
        return _fisher(_TINY)
    low = _crossing(lambda chance: v * v - loud(chance), 0.0, meeting)
    high = _crossing(lambda chance: quiet(chance) - v * v, meeting, 1.0)
    # Tails of a binomial are log-concave in its chance, and so is their product. So there is one
    # peak, which may be the kink where a hit becomes certain.
    high = min(high, (1.0 - delta) / factor)
    peak = minimize_scalar(
        lambda chance: -quiet(chance) * loud(chance),
        bounds=(min(low, high), high),
        method="bounded",
        options={"xatol": 1e-6 * high},
    )
    tried = (float(peak.x), meeting, high)
    return min(1.0, _fisher(max(quiet(chance) * loud(chance) for chance in tried)))


def _fisher(product: float) -> float:
    """Return the p-value of a product of two independent p-values."""
    return product * (1.0 - math.log(product)) if product > 0 else 0.0


def _crossing(falling: Callable[[float], float], low: float, high: float) -> float:
    """Return where a falling function changes its sign, or an end.

    It is `low` if the function begins at or below zero, and `high` if it ends at or above zero.
    """
    from scipy.optimize import brentq

    if falling(low) <= 0:
        return low
    if falling(high) >= 0:
        return high
    return float(brentq(falling, low, high, xtol=1e-14))


def epsilon_bound(counts: Counts, *, delta: float, alpha: float) -> float:
    """Return the largest ε that the counts refute at `delta`.

    The confidence is 1 - `alpha`. If no ε is refuted, the result is 0.
    """
    return _largest(lambda epsilon: p_value(counts, epsilon=epsilon, delta=delta), alpha)


def max_detectable_epsilon(trials: int, *, delta: float, alpha: float) -> float:
    """Return the `epsilon_bound` of perfect guesses, which no result can exceed."""
    return epsilon_bound(
        Counts(true_positives=trials, false_positives=0, trials=trials), delta=delta, alpha=alpha
    )


def p_value_of_one_run(
    right: int, guesses: int, canaries: int, *, epsilon: float, delta: float
) -> float:
    """Return an upper bound on the chance of so many right guesses.

    The bound is for `right` or more of them in one run under (ε, δ). Each of m = `canaries` units
    is there by its own fair coin, and the adversary guesses `guesses` of the coins. Let
    W ~ Binomial(guesses, e^ε/(1 + e^ε)) and f(v) = P[W ≥ v]. The chance is below
    f(v) + 2·m·δ·max over i of (f(v - i) - f(v))/i (Steinke, Nasr, Jagielski 2023, Theorem 5.2).
    """
    import numpy as np
    from scipy.stats import binom

    if right == 0:
        return 1.0
    chance = 1.0 / (1.0 + math.exp(-min(epsilon, MAX_EPSILON)))
    below = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, chance))
    slope = float((below / np.arange(1, right + 1)).max())
    return float(min(1.0, binom.sf(right - 1, guesses, chance) + 2 * canaries * delta * slope))


def epsilon_bound_of_one_run(
    right: int, guesses: int, canaries: int, *, delta: float, alpha: float
) -> float:
    """Return the largest ε that so many right guesses refute at `delta`.

    If no ε is refuted, the result is 0.
    """
    return _largest(
        lambda epsilon: p_value_of_one_run(right, guesses, canaries, epsilon=epsilon, delta=delta),
        alpha,
    )


def max_detectable_epsilon_of_one_run(canaries: int, *, delta: float, alpha: float) -> float:
    """Return the bound of one run with perfect guesses.

    Every canary is guessed, and no result can exceed this bound.
    """
    return epsilon_bound_of_one_run(canaries, canaries, canaries, delta=delta, alpha=alpha)


def _largest(p: Callable[[float], float], alpha: float) -> float:
    if p(0.0) > alpha:
        return 0.0
    low, high = 0.0, MAX_EPSILON
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if p(middle) <= alpha else (low, middle)
    return low
