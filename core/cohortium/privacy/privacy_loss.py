"""ε of many releases with Gaussian noise, by their privacy loss' distribution.

A release's loss is put on a grid that claims no privacy that is not there ("Connect the Dots",
Doroshenko et al. 2022). A loss between two points is split between both, in shares that keep its
probability under either of two neighbouring data sets. Losses of independent releases add up, so
their distributions are convolved, by the Fourier transform.

Before that, each distribution is tilted: multiplied by exp(λ · loss). λ is such that the losses
which decide δ become the likely ones. So a δ of 10⁻⁵⁰ is as precise as one of 10⁻².

Guarantees:
    The result is an upper bound for every grid: a coarse grid only makes it larger.
    The losses that are omitted at either end count as a loss without bound.
    The largest rounding error of the transform is added.
    `MAX_POINTS` bounds work and memory for all noise, rates and numbers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from attrs import frozen

from cohortium.privacy.loss_grids import LossDistribution, LossSketch, ReleaseGroup, discretise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Reals: TypeAlias = NDArray[np.float64]

SPREAD = 1e-4
"""Largest relative growth of the loss' variance by the grid.

ε grows by less.
"""

MAX_POINTS = 1 << 17
"""Largest number of points of a grid.

If a grid needs more, it is made coarser.
"""

MIN_POINTS = 1 << 12
"""Smallest number of points of each grid.

It counts if there are so many mechanisms that they share `MAX_POINTS`.
"""

TAIL = 1e-9
"""The part of δ that may go to omitted losses."""

EXPONENT = 32.0
"""Exponent of the probability beyond the grid's ends.

The tilted loss is beyond them with a probability below e to minus this.
"""

ROUNDING = 2.0**-52
"""Relative rounding error of double precision."""

ROUGHEST = 1e-3
"""Relative rounding of a composed distribution that gives no bound."""

FARTHEST = 600.0
"""Largest exponent that is untilted, as a larger one would overflow."""


def epsilon(kinds: Sequence[ReleaseGroup], delta: float) -> float:
    """Return an upper bound on ε at `delta` of all releases together.

    It is the larger of the two directions: a unit is removed, or added. The result is infinity if
    no bound is found.
    """
    from scipy.special import ndtri

    total = sum(kind.times for kind in kinds)
    if _rounding(total) > ROUGHEST:
        return math.inf
    reach = -float(ndtri(TAIL * delta / total))
    sketches = [LossSketch.of(kind, reach) for kind in kinds]
    variance = _cumulants(sketches, 0.0)[2]
    # A power of two, so that every point is exact.
    mesh = 2.0 ** math.floor(math.log2(math.sqrt(6 * SPREAD * variance / total)))
    most = max(MIN_POINTS, MAX_POINTS // len(kinds))
    while True:
        there = [each.snapped(mesh) for each in sketches]
        frames = [_frame(way, delta, mesh) for way in (there, [each.turned() for each in there])]
        spans = [float(np.ptp(each.loss)) for each in there]
        widest = max(*spans, *(frame.top - frame.bottom for frame in frames)) / mesh
        if widest <= most:
            break
        # By half of the excess, as a coarser grid widens the distribution.
        mesh *= 2.0 ** max(1, round(math.log2(widest / most) / 2))
    grids = zip(*(discretise(kind, mesh, reach) for kind in kinds), strict=True)
    ways = zip(grids, frames, strict=True)
    return max(_bound(way, kinds, mesh, frame, delta) for way, frame in ways)


def _rounding(releases: int) -> float:
    """Return the rounding error of a transform to the power of `releases`.

    It is relative to the transform's largest value.
    """
    return 8 * releases * ROUNDING


def _cumulants(sketches: Sequence[LossSketch], tilt: float) -> tuple[float, float, float]:
    """Return log E[exp(tilt · loss)], and the tilted loss' mean and variance.

    All three are over all releases.
    """
    whole, mean, variance = 0.0, 0.0, 0.0
    for sketch in sketches:
        logs = tilt * sketch.loss + sketch.logs
        largest = logs.max()
        chances = np.exp(logs - largest)
        sum_ = chances.sum()
        chances /= sum_
        centre = float(chances @ sketch.loss)
        whole += sketch.times * (math.log(sum_) + float(largest))
        mean += sketch.times * centre
        variance += sketch.times * float(chances @ (sketch.loss - centre) ** 2)
    return whole, mean, variance


@frozen
class _Frame:
    """Range of the tilted loss of all releases.

    Attributes:
        tilt: λ.
        centre: Mean of the tilted loss.
        bottom: Lower end, below which the loss hardly ever is.
        top: Upper end, above which the loss hardly ever is.
        theta: The exponent of Chernoff's bound at the top.
    """

    tilt: float
    centre: float
    bottom: float
    top: float
    theta: float


def _frame(sketches: Sequence[LossSketch], delta: float, mesh: float) -> _Frame:
    """Return the frame, with λ by bisection.

    At λ, P[loss > its tilted mean] is `delta` by Chernoff's bound.
    """
    low, high = 1e-6 / max(math.sqrt(_cumulants(sketches, 0.0)[2]), mesh), 10 / mesh
    while high > 1.1 * low:
        tilt = math.sqrt(low * high)
        whole, mean, _ = _cumulants(sketches, tilt)
        low, high = (tilt, high) if tilt * mean - whole < -math.log(delta) else (low, tilt)
    whole, mean, variance = _cumulants(sketches, low)
    deviation = max(math.sqrt(variance), mesh)
    thetas = [float(theta) for theta in np.geomspace(0.5, 32, 13) / deviation]

    def end(theta: float) -> float:
        """Return the loss that the tilted loss exceeds with probability e^-EXPONENT.

        For θ < 0, the tilted loss is below it with this probability.
        """
        return (_cumulants(sketches, low + theta)[0] - whole + EXPONENT) / theta

    theta = min(thetas, key=end)
    return _Frame(low, mean, max(end(-theta) for theta in thetas), end(theta), theta)


def _bound(
    grids: Sequence[LossDistribution],
    kinds: Sequence[ReleaseGroup],
    mesh: float,
    frame: _Frame,
    delta: float,
) -> float:
    """Return ε at `delta` of the grids' sum, in one direction."""
    first = math.floor(frame.bottom / mesh)
    composed = _compose(grids, kinds, mesh, frame, first)
    if composed.lost >= delta:
        return math.inf
    loss = mesh * np.arange(first, first + len(composed.chances), dtype=np.float64)
    # log P[loss beyond the last point], by Chernoff.
    beyond = composed.tail + composed.scale - (frame.theta + frame.tilt) * float(loss[-1])
    left = delta - composed.lost - math.exp(min(0.0, beyond))
    exponents = frame.tilt * (frame.centre - loss)
    found = math.inf
    if left > 0 and exponents[-1] <= FARTHEST:
        start = int(np.argmax(exponents <= FARTHEST))
        chances = composed.chances[start:] * np.exp(exponents[start:])
        goal = math.log(left) - composed.scale + frame.tilt * frame.centre
        found = _least(chances, loss[start:], mesh, math.exp(min(goal, FARTHEST)))
    pairs = list(zip(kinds, grids, strict=True))
    # Beyond the sum of the largest losses there are only the omitted losses.
    largest = sum(kind.times * (grid.first + len(grid.chances) - 1) * mesh for kind, grid in pairs)
    margin = sum(kind.times * len(grid.chances) for kind, grid in pairs) * ROUNDING
    return max(0.0, min(found, largest) + margin)


@frozen
class _Composed:
    """The tilted loss of all releases.

    Attributes:
        chances: Probabilities on the frame's grid, which may be too large by the rounding error.
        scale: log E[exp(λ · loss)], which untilts them.
        tail: log E[exp(θ · loss)] of the tilted loss.
        lost: Upper bound of the probability of a loss without bound.
    """

    chances: Reals
    scale: float
    tail: float
    lost: float


def _compose(
    grids: Sequence[LossDistribution],
    kinds: Sequence[ReleaseGroup],
    mesh: float,
    frame: _Frame,
    first: int,
) -> _Composed:
    """Convolve the tilted grids on a circle of the frame's points."""
    from scipy import fft

    size = fft.next_fast_len(math.ceil(frame.top / mesh) - first + 2, real=True)
    spectrum = np.ones(size // 2 + 1, dtype=np.complex128)
    scale = tail = lost = 0.0
    for kind, grid in zip(kinds, grids, strict=True):
        places = np.arange(grid.first, grid.first + len(grid.chances))
        loss = places * mesh
        with np.errstate(divide="ignore"):
            logs = np.log(grid.chances) + frame.tilt * loss
        largest = float(logs.max())
        tilted = np.exp(logs - largest)
        sum_ = float(tilted.sum())
        tilted /= sum_
        scale += kind.times * (math.log(sum_) + largest)
        lost += kind.times * grid.lost
        above = float(tilted @ np.exp(frame.theta * (loss - loss[-1])))
        tail += kind.times * (math.log(above) + frame.theta * float(loss[-1]))
        wrapped = np.bincount(places % size, weights=tilted, minlength=size)
        spectrum *= fft.rfft(wrapped) ** kind.times
    chances = np.maximum(np.roll(fft.irfft(spectrum, size), -(first % size)), 0.0)
    chances += _rounding(sum(kind.times for kind in kinds)) * chances.max()
    return _Composed(chances, scale, tail, lost)


def _least(chances: Reals, loss: Reals, mesh: float, goal: float) -> float:
    """Return the least ε that reaches `goal`, or infinity.

    ε reaches it if E[(1 - exp(ε - loss))⁺] ≤ `goal`.

    The result is infinity if no point satisfies it.
    """
    shares = -np.expm1(-mesh * np.arange(len(loss)))

    def delta(place: int) -> float:
        """Return the expectation where ε is the loss at `place`.

        It falls with the place.
        """
        return float(chances[place:] @ shares[: len(loss) - place])

    low, high = -1, len(loss) - 1
    if not delta(high) <= goal:
        return math.inf
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if delta(middle) <= goal else (middle, high)
    if high == 0:
        return float(loss[0])
    # Between two points it is a straight line in e^ε.
    more, less = delta(high - 1), delta(high)
    part = (more - goal) / (more - less)
    return float(loss[high - 1]) + math.log1p(part * math.expm1(mesh))
