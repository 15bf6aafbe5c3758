"""Scores from noised sums, each with one interval for sampling and noise.

Every score here is a ratio A / B of quantities that are linear, or bilinear, in the sums.  A value
θ belongs to the interval where (A - θB)² is at most z² times its variance.  The variance is a
polynomial of degree two in θ, so the interval is the solution of one quadratic inequality.
Without noise, that is the interval of Wilson (1927) for a share.  Without sampling, it is the
interval of Fieller (1954) for a ratio, whose level is exact however large the noise is.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
from attrs import evolve, frozen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

Z: Final = 1.959964
"""Standard normal quantile of a 95 % interval."""

HIDDEN: Final = 0.25
"""Half-width from which noise hides a share."""

MARGIN: Final = 1.04
"""Factor of a mean's half-width for noise.

Without it, intervals of means of noised shares held the exact mean in 92.7 % of some 1,000 draws.
"""

AUC_EDGES: Final = (
    -5.0, -4.0, -3.0, -2.25, -1.6, -1.0, -0.5, 0.0, 0.5, 1.0, 1.6, 2.25, 3.0, 4.0, 5.0
)  # fmt: skip
"""Limits between the bins of an AUC, in log odds."""

AUC_BINS: Final = len(AUC_EDGES) + 1
"""Number of bins of an AUC for each of the two kinds of examples."""


@frozen(kw_only=True)
class Estimate:
    """One score of a noised sum.

    Attributes:
        metric: Key of the metric, as in `Scores.metrics`.
        name: Class, finding or tissue that it describes.  "" for all of them.
        group: Group of examples that it describes, as "sex: female".  "" for all examples.
        value: A / B, without a cut at the ends of its range.  None if B is not above zero.
        low: Lower end of the 95 % interval for sampling and noise.
        high: Upper end of that interval.
        noise_low: Lower end of the 95 % interval for noise alone.  It holds the exact score of the
            examples in the sum.
        noise_high: Upper end of that interval.
        lowest: Least possible value of the score.
        highest: Greatest possible value, or None without one.
    """

    metric: str
    name: str = ""
    group: str = ""
    value: float | None
    low: float
    high: float
    noise_low: float
    noise_high: float
    lowest: float = 0.0
    highest: float | None = 1.0

    @property
    def is_hidden(self) -> bool:
        """Whether the noise alone leaves half of the range open, or more.

        A value without a greatest one is hidden where its interval reaches its least one.
        """
        if self.highest is None:
            return self.value is None or self.noise_low <= self.lowest
        half = (self.noise_high - self.noise_low) / 2
        return self.value is None or half >= HIDDEN * (self.highest - self.lowest)

    @property
    def inconsistency(self) -> str:
        """The first impossible relation among the values, or "" without one."""
        ends = (self.lowest, self.low, self.noise_low, self.noise_high, self.high)
        above = () if self.highest is None else (self.highest,)
        whole = (*ends, *above)
        if not all(math.isfinite(each) for each in whole) or list(whole) != sorted(whole):
            return "its interval is outside its range"
        if above and not self.lowest < above[0]:
            return "its range is empty"
        if self.value is not None and not math.isfinite(self.value):
            return "its value is no number"
        return ""


@frozen(kw_only=True)
class Ratio:
    """A / B with the variance of A - θB as a polynomial in θ.

    Attributes:
        part: A.
        whole: B.
        noise: Coefficients of θ⁰, θ¹ and θ² of the variance by noise.
        sampling: The same of the variance by sampling.
    """

    part: float
    whole: float
    noise: tuple[float, float, float] = (0.0, 0.0, 0.0)
    sampling: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def value(self) -> float | None:
        """A / B, or None if B is not above zero."""
        return self.part / self.whole if self.whole > 0 else None

    def limits(self, *, with_sampling: bool) -> tuple[float, float]:
        """Return the ends of the interval, which are infinite if B may be zero.

        Args:
            with_sampling: Whether the interval holds sampling as well as noise.
        """
        pairs = zip(self.noise, self.sampling, strict=True)
        v0, v1, v2 = (Z * Z * (noise + with_sampling * other) for noise, other in pairs)
        a = self.whole * self.whole - v2
        b = -2 * self.part * self.whole - v1
        c = self.part * self.part - v0
        if self.whole <= 0 or a <= 0:
            return -math.inf, math.inf
        reach = math.sqrt(max(b * b - 4 * a * c, 0.0))
        return (-b - reach) / (2 * a), (-b + reach) / (2 * a)

    def estimate(
        self, metric: str, name: str = "", *, lowest: float = 0.0, highest: float | None = 1.0
    ) -> Estimate:
        """Return the ratio with its intervals.

        Args:
            metric: Key of the metric.
            name: Class, finding or tissue that it describes.
            lowest: Least possible value.
            highest: Greatest possible value, or None without one.
        """
        noise, both = self.limits(with_sampling=False), self.limits(with_sampling=True)
        return _estimate(metric, name, self.value, noise, both, span=(lowest, highest))


def _estimate(
    metric: str,
    name: str,
    value: float | None,
    noise: tuple[float, float],
    both: tuple[float, float],
    *,
    span: tuple[float, float | None],
) -> Estimate:
    """Return the estimate whose intervals are cut at the ends of the range.

    An interval beyond the range becomes the nearest end.  Rounding leaves no value in the range
    outside of its intervals.
    """
    if value is not None:
        noise = min(noise[0], value), max(noise[1], value)

    def cut(limit: float) -> float:
        above = max(float(limit), span[0])
        return above if span[1] is None else min(above, span[1])

    return Estimate(
        metric=metric,
        name=name,
        value=None if value is None else float(value),
        low=cut(min(both[0], noise[0])),
        high=cut(max(both[1], noise[1])),
        noise_low=cut(noise[0]),
        noise_high=cut(noise[1]),
        lowest=span[0],
        highest=span[1],
    )


def share_ratio(hits: float, misses: float, *, noise: float) -> Ratio:
    """Return hits / (hits + misses), where each count carries independent noise.

    Args:
        hits: Noised number of successes.
        misses: Noised number of failures.
        noise: Standard deviation of the noise on each.
    """
    variance, whole = noise * noise, hits + misses
    trials = max(whole, 0.0)
    return Ratio(
        part=hits,
        whole=whole,
        noise=(variance, -2 * variance, 2 * variance),
        sampling=(0.0, trials, -trials),
    )


def mean_ratio(total: float, examples: float, *, noise: float, spread: float) -> Ratio:
    """Return total / examples, where each carries independent noise.

    Args:
        total: Noised sum of values.
        examples: Noised number of values.
        noise: Standard deviation of the noise on each.
        spread: Variance of the values, or a bound on it.
    """
    variance = noise * noise
    return Ratio(
        part=total,
        whole=examples,
        noise=(variance, 0.0, variance),
        sampling=(max(examples, 0.0) * max(spread, 0.0), 0.0, 0.0),
    )


def area_ratio(
    positive: NDArray[np.float64], negative: NDArray[np.float64], *, noise: float
) -> Ratio:
    """Return the area under the ROC curve of two noised histograms.

    It is the Mann-Whitney statistic over its maximum.  Examples in one bin count half.  The
    variance by sampling is that of DeLong et al. (1988).

    Args:
        positive: Positive examples by bin of a rising prediction, shape (bins,).
        negative: Negative examples by bin, shape (bins,).
        noise: Standard deviation of the noise on each count.
    """
    bins, variance = len(positive), noise * noise
    wins = np.tril(np.ones((bins, bins)), -1) + np.eye(bins) / 2
    above, below = wins @ negative, wins.T @ positive
    num_positive, num_negative = float(positive.sum()), float(negative.sum())
    whole = num_positive * num_negative if min(num_positive, num_negative) > 0 else 0.0
    part = float(positive @ above)
    # The norms of (wins - θ) @ negative and of its transpose with positive.
    squares = (
        float(above @ above + below @ below),
        -2 * float(num_negative * above.sum() + num_positive * below.sum()),
        bins * (num_negative**2 + num_positive**2),
    )
    # Noise in the sums has raised them by 2·variance·‖wins - θ‖², of which half is right.  Half of
    # the excess is taken off: with all of it off, means of areas lay in 92 % of their intervals.
    matrix = (float((wins**2).sum()), -2 * float(wins.sum()), float(bins * bins))
    exact = tuple(
        variance * one - 0.5 * variance * variance * two
        for one, two in zip(squares, matrix, strict=True)
    )
    theta = min(max(part / whole, 0.0), 1.0) if whole else 0.5
    if _at(exact, theta) < variance * variance * _at(matrix, theta):
        exact = tuple(variance * one for one in squares)
    spread = 0.0
    if whole:
        first = float(positive @ (above / num_negative - theta) ** 2) / num_positive**2
        second = float(negative @ (below / num_positive - theta) ** 2) / num_negative**2
        spread = max(first, 0.0) + max(second, 0.0)
    return Ratio(
        part=part,
        whole=whole,
        noise=(exact[0], exact[1], exact[2]),
        sampling=(whole * whole * spread, 0.0, 0.0),
    )


def _at(polynomial: Sequence[float], theta: float) -> float:
    return polynomial[0] + polynomial[1] * theta + polynomial[2] * theta * theta


def area_rows(probabilities: Tensor, positive: Tensor, known: Tensor | None = None) -> Tensor:
    """Return each example's cells of K pairs of histograms, shape (B, K · 2 · AUC_BINS).

    A row is scaled by 1 / √K, so that its norm is at most 1.  The first histogram of a pair counts
    negative examples, and the second one positive examples, both by bin of a rising probability.

    Args:
        probabilities: Probabilities of K classes or findings, shape (B, K).
        positive: Whether the example has the class, shape (B, K).
        known: Whether that is known, shape (B, K), or None if all is known.
    """
    import torch
    from torch.nn import functional

    odds = torch.logit(probabilities.double().nan_to_num(), eps=1e-9)
    edges = torch.tensor(AUC_EDGES, dtype=odds.dtype, device=odds.device)
    place = torch.bucketize(odds, edges) + AUC_BINS * positive
    rows = functional.one_hot(place, 2 * AUC_BINS).to(odds.dtype)
    if known is not None:
        rows = rows * known[..., None]
    scaled: Tensor = rows.flatten(1) / probabilities.shape[1] ** 0.5
    return scaled


def areas(sums: NDArray[np.float64], *, noise: float) -> list[Ratio]:
    """Return the area under each of K ROC curves, from the sum of `area_rows`.

    Args:
        sums: The sum, shape (K · 2 · AUC_BINS,).
        noise: Standard deviation of the noise on each value of the sum.
    """
    tables = sums.reshape(-1, 2, AUC_BINS)
    scale = math.sqrt(len(tables))
    return [area_ratio(table[1] * scale, table[0] * scale, noise=noise * scale) for table in tables]


def mean_of_ratios(
    ratios: Sequence[Ratio],
    metric: str,
    *,
    lowest: float = 0.0,
    have_shared_examples: bool = False,
) -> Estimate:
    """Return the unweighted mean of ratios, whose noise is independent.

    Half-widths combine as in Zou and Donner (2008).  Scores on the same examples may rise and fall
    together by sampling, so their half-widths for sampling add up.  A ratio without a value has no
    part in the mean.

    Args:
        ratios: Ratios of classes, findings or tissues.
        metric: Key of the mean.
        lowest: Least possible value.  The greatest is 1.
        have_shared_examples: Whether the ratios are of the same examples.
    """
    pairs = [(ratio, value) for ratio in ratios if (value := ratio.value) is not None]
    if not pairs:
        unbounded = (-math.inf, math.inf)
        return _estimate(metric, "", None, unbounded, unbounded, span=(lowest, 1.0))
    centre = sum(value for _, value in pairs) / len(pairs)
    gather = math.fsum if have_shared_examples else _root_sum_of_squares

    def half_widths(end: int) -> tuple[float, float]:
        noises, samplings = [], []
        for ratio, value in pairs:
            noise = abs(ratio.limits(with_sampling=False)[end] - value)
            both = abs(ratio.limits(with_sampling=True)[end] - value)
            noises.append(noise)
            # Both are infinite where the noise is.
            rest = both * both - noise * noise if math.isfinite(both) else 0.0
            samplings.append(math.sqrt(max(rest, 0.0)))
        noise, sampling = MARGIN * _root_sum_of_squares(noises), gather(samplings)
        return noise / len(pairs), math.hypot(noise, sampling) / len(pairs)

    (noise_down, down), (noise_up, up) = half_widths(0), half_widths(1)
    return _estimate(
        metric,
        "",
        centre,
        (centre - noise_down, centre + noise_up),
        (centre - down, centre + up),
        span=(lowest, 1.0),
    )


def _root_sum_of_squares(values: Sequence[float]) -> float:
    return math.hypot(*values)


def of_group(estimates: Sequence[Estimate], group: str) -> tuple[Estimate, ...]:
    """Return `estimates` as those of a group of examples."""
    return tuple(evolve(each, group=group) for each in estimates)
