"""The privacy loss of one release with Gaussian noise, on a grid.

A loss between two points of the grid is split between both ("Connect the Dots", Doroshenko et al.
2022). The shares keep its probability under either of two neighbouring data sets. The two data sets
are no harder to distinguish than before, so the grid claims no privacy that is not there.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from attrs import frozen

from cohortium.privacy.mechanisms import losses

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Reals: TypeAlias = NDArray[np.float64]


@frozen
class ReleaseGroup:
    """Releases of one kind: μ, sampling rate and number.

    The noise is given by μ, the sensitivity over the standard deviation.
    """

    mu: float
    rate: float
    times: int


@frozen
class LossSketch:
    """Losses of one kind of release, with the logarithms of their probabilities.

    The probabilities are those where a unit is there. The sketch is precise enough to choose λ and
    a grid, but no bound depends on it.
    """

    loss: Reals
    logs: Reals
    times: int

    @classmethod
    def of(cls, kind: ReleaseGroup, reach: float) -> LossSketch:
        """Return the sketch of a release, up to noises of some reach.

        The noises are within `reach` standard deviations of the likely ones.
        """
        from scipy.special import logsumexp

        z = np.linspace(-reach, reach + kind.mu, int((2 * reach + kind.mu) * 16) + 2)
        loss = losses(kind.rate, kind.mu, z)
        logs = loss - z**2 / 2
        return cls(loss, logs - logsumexp(logs), kind.times)

    def snapped(self, mesh: float) -> LossSketch:
        """Return the sketch on the grid on which `discretise` puts losses."""
        low = np.floor(self.loss / mesh) * mesh
        share = np.expm1(low - self.loss) / math.expm1(-mesh)
        with np.errstate(divide="ignore"):
            logs = [self.logs + np.log1p(-share), self.logs + np.log(share)]
        return LossSketch(np.concatenate([low, low + mesh]), np.concatenate(logs), self.times)

    def turned(self) -> LossSketch:
        """Return the sketch of the other direction.

        The loss is minus this one, with its probabilities where the unit is not there.
        """
        return LossSketch(-self.loss, self.logs - self.loss, self.times)


@frozen
class LossDistribution:
    """Loss of one release on a grid.

    The probabilities `chances` belong to the losses (first + n) · mesh, and `lost` to a loss beyond
    all bounds.
    """

    first: int
    chances: Reals
    lost: float


def discretise(
    kind: ReleaseGroup, mesh: float, reach: float
) -> tuple[LossDistribution, LossDistribution]:
    """Return a release's loss where a unit is removed, and added.

    Both are of one pair of distributions. Consider an interval between the losses a and b with
    probabilities P and Q. A share p goes to b and P - p to a, such that p e^-b + (P - p) e^-a = Q.
    """
    mu, rate = kind.mu, kind.rate
    ends = losses(rate, mu, np.array([-reach, reach + mu]))
    first, last = math.floor(ends[0] / mesh), math.ceil(ends[1] / mesh)
    loss = np.arange(first, last + 1) * mesh
    z = (_log_ratios(rate, loss) + mu**2 / 2) / mu
    gone, moved = _between(z), _between(z - mu)
    upper = rate * (moved - _weighted(kind, loss, z, gone)) / -math.expm1(-mesh)
    both = (1 - rate) * gone + rate * moved
    upper = np.clip(upper, 0, both)
    chances = np.append(both - upper, 0.0)
    chances[1:] += upper
    there = chances.copy()
    there[0] += (1 - rate) * _below(z[0]) + rate * _below(z[0] - mu)
    lost = (1 - rate) * _below(-z[-1]) + rate * _below(mu - z[-1])
    grid = LossDistribution(first, there, lost)
    if rate == 1:  # the loss is normal in either direction
        return grid, grid
    back = chances * np.exp(-loss)
    back[-1] += _below(-z[-1])
    return grid, LossDistribution(-last, back[::-1].copy(), _below(z[0]))


def _log_ratios(rate: float, loss: Reals) -> Reals:
    """Return log r where log((1 - q) + q r) is `loss`.

    The result is minus infinity where there is no such r.
    """
    if rate == 1:
        return loss
    limit = 30.0
    with np.errstate(divide="ignore"):
        small = np.log1p(np.maximum(np.expm1(np.minimum(loss, limit)) / rate, -1.0))
    large = loss - math.log(rate) + np.log1p((rate - 1) * np.exp(-np.maximum(loss, limit)))
    return np.where(loss < limit, small, large)


def _below(z: float) -> float:
    """Return the normal distribution's Φ."""
    from scipy.special import ndtr

    return float(ndtr(z))


def _between(z: Reals) -> Reals:
    """Return Φ(z[n + 1]) - Φ(z[n]), by the smaller tails."""
    from scipy.special import ndtr

    tails: Reals = ndtr(-np.abs(z))
    a, b = tails[:-1], tails[1:]
    return np.where(z[:-1] >= 0, a - b, np.where(z[1:] <= 0, b - a, 1 - a - b))


def _weighted(kind: ReleaseGroup, loss: Reals, z: Reals, gone: Reals) -> Reals:
    """Return each interval's probability without the unit, times a ratio.

    The ratio is r at the interval's lower end.
    """
    from scipy.special import erfcx

    # r · (1 - Φ(z)), which neither overflows nor underflows where z is large.
    tails = 0.5 * erfcx(np.maximum(z, 0) / math.sqrt(2)) * np.exp(-((z - kind.mu) ** 2) / 2)
    with np.errstate(invalid="ignore"):
        beyond = tails[:-1] - np.exp(-kind.mu * np.diff(z)) * tails[1:]
    # Below the least possible loss, r is negative here, as the shares require.
    capped = np.minimum(loss[:-1], 600.0)
    ratio = np.exp(capped) if kind.rate == 1 else 1 + np.expm1(capped) / kind.rate
    return np.where(z[:-1] >= 0, beyond, ratio * gone)
