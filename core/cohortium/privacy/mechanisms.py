"""Privacy mechanisms for accounting: Gaussian noise, or a Rényi divergence."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Reals: TypeAlias = NDArray[np.float64]

ORDERS = (1.1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, *range(4, 65), 80, 96, 128, 192, 256, 384, 512)
"""Rényi orders at which divergences are computed."""

NOISES = 1e-3, 1e9
"""Smallest and largest noise multiplier of a mechanism.

They bound the accountants' work.
"""

MIN_RATE = 1e-12
"""The smallest sampling rate of a mechanism."""

MAX_RELEASES = 10**12
"""The largest number of releases of a mechanism."""

WINDOW = 12.0
"""Standard deviations around a peak beyond which a density is omitted.

The density is normal, and about 10⁻³² there.
"""


class GaussianMechanism(
    msgspec.Struct, frozen=True, kw_only=True, tag="gaussian", rename={"num_releases": "releases"}
):
    """Releases of a sum with Gaussian noise.

    Each release is of all units or of its own Poisson sample. Neighbouring data differ in one unit,
    which is there or counts as zero.

    Attributes:
        noise_multiplier: Standard deviation of the noise over the sensitivity, within `NOISES`.
        sampling_rate: Probability q that a unit is in a release, `MIN_RATE` or more. 1 without
            sampling.
        num_releases: Number of releases, `MAX_RELEASES` at most.
    """

    noise_multiplier: float
    sampling_rate: float = 1.0
    num_releases: int = 1

    def __post_init__(self) -> None:
        """Refuse numbers that are not those of a mechanism."""
        least, most = NOISES
        if not least <= self.noise_multiplier <= most:
            raise ValueError(
                f"a noise multiplier is between {least:g} and {most:g}, not "
                f"{self.noise_multiplier:g}."
            )
        if not MIN_RATE <= self.sampling_rate <= 1:
            raise ValueError(
                f"a sampling rate is between {MIN_RATE:g} and 1, not {self.sampling_rate:g}."
            )
        if not 1 <= self.num_releases <= MAX_RELEASES:
            raise ValueError(f"a mechanism has between 1 and {MAX_RELEASES:,} releases.")

    @property
    def rdp_curve(self) -> Reals:
        """Rényi divergence at each of `ORDERS` (Mironov, Talwar, Zhang 2019)."""
        return self.num_releases * _divergences(self.sampling_rate, 1 / self.noise_multiplier)


class RenyiBoundedMechanism(msgspec.Struct, frozen=True, kw_only=True, tag="renyi"):
    """Any mechanism, known by a bound on its Rényi divergence.

    The divergence is between neighbouring data.

    Attributes:
        name: Name of the mechanism.
        bounds: Bound at each of `ORDERS`, or infinity where none is known.
    """

    name: str
    bounds: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse a curve that is not one over `ORDERS`."""
        if len(self.bounds) != len(ORDERS) or not all(bound >= 0 for bound in self.bounds):
            raise ValueError(f"bounds must be {len(ORDERS)} numbers that are not negative.")

    @property
    def rdp_curve(self) -> Reals:
        """Rényi divergence at each of `ORDERS`."""
        return np.array(self.bounds)


Mechanism: TypeAlias = GaussianMechanism | RenyiBoundedMechanism


def losses(rate: float, mu: float, z: Reals) -> Reals:
    """Return the privacy loss where standard noise is z.

    The loss is log((1 - q) + q r) with r = exp(μz - μ²/2).

    Args:
        rate: The sampling rate q.
        mu: μ, the sensitivity over the noise's deviation.
        z: Noise of any shape, which is standard normal if the unit is absent.
    """
    ratio = mu * z - mu**2 / 2
    if rate == 1:
        return ratio
    # Either form alone loses digits, or overflows.
    small = np.log1p(rate * np.expm1(np.minimum(ratio, 1.0)))
    large = ratio + math.log(rate) + np.log1p((1 - rate) / rate * np.exp(-np.maximum(ratio, 1.0)))
    return np.where(ratio < 1, small, large)


def _divergences(rate: float, mu: float) -> Reals:
    """Return the divergences of one release at each of `ORDERS`.

    With A(α) = E[((1 - q) + q r)^α] the divergence is log A(α) / (α - 1). The function sums A(α) -
    1, whose terms are positive, so an A close to 1 loses nothing in rounding.
    """
    orders = np.array(ORDERS, dtype=np.float64)
    if rate == 1:
        return orders * (mu**2 / 2)
    is_whole = orders % 1 == 0
    excess = np.empty(len(orders))
    excess[is_whole] = _whole_excess(rate, mu, orders[is_whole])
    excess[~is_whole] = [_excess(rate, mu, float(order)) for order in orders[~is_whole]]
    curve: Reals = np.logaddexp(0, excess) / (orders - 1)
    return curve


def _whole_excess(rate: float, mu: float, orders: Reals) -> Reals:
    """Return log(A(α) - 1) of whole orders.

    It is the binomial sum of section 3.3, less its sum at r = 1.
    """
    from scipy.special import gammaln, logsumexp

    alpha, k = orders[:, None], np.arange(2, orders.max() + 1)
    is_term = k <= alpha
    rest = np.where(is_term, alpha - k, 0)
    terms = gammaln(alpha + 1) - gammaln(k + 1) - gammaln(rest + 1)
    terms += k * math.log(rate) + rest * math.log1p(-rate)
    power = k * (k - 1) * (mu**2 / 2)
    terms += power + np.log(-np.expm1(-power))
    summed: Reals = logsumexp(np.where(is_term, terms, -np.inf), axis=1)
    return summed


def _excess(rate: float, mu: float, order: float) -> float:
    """Return log(A(α) - 1) of a fractional order, by the trapezoidal rule.

    The integrand is (1 + u)^α - 1 - αu with u = q(r - 1), whose mean is zero. It is analytic except
    at points π/μ off the real line, and its mass is around 0 and around αμ. With steps as fine as
    these, the rule is exact in double precision.
    """
    from scipy.special import logsumexp

    step = min(1 / 8, 1 / (2 * mu))
    ends = [(-WINDOW, WINDOW), (order * mu - WINDOW, order * mu + WINDOW)]
    z = np.unique(np.concatenate([np.arange(a // step, b // step + 1) for a, b in ends])) * step
    loss = losses(rate, mu, z)
    logs = np.empty_like(z)
    is_near = np.abs(loss) < 1e-3  # noqa: PLR2004 - four terms are exact to 10⁻¹² there
    is_above, is_below = (loss > 0) & ~is_near, (loss < 0) & ~is_near
    u = np.expm1(loss[is_near])
    series = 1 + (order - 2) / 3 * u * (1 + (order - 3) / 4 * u * (1 + (order - 4) / 5 * u))
    with np.errstate(divide="ignore"):
        logs[is_near] = np.log(order * (order - 1) / 2 * u**2 * series)
    far, back = loss[is_above], loss[is_below]
    shrunk = (order - 1) * np.exp(-order * far) - order * np.exp(-(order - 1) * far)
    logs[is_above] = order * far + np.log1p(shrunk)
    logs[is_below] = np.log(order - 1 + np.exp(order * back) - order * np.exp(back))
    density = -(z**2) / 2 + math.log(step / math.sqrt(2 * math.pi))
    return float(logsumexp(logs + density))
