"""The number of candidates of a search, and the bound for who sees the best run alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cohortium.errors import PrivacyError
from cohortium.privacy.candidate_number import CandidateNumber, Distribution
from cohortium.privacy.mechanisms import ORDERS, GaussianMechanism

NUMBERS = st.one_of(
    st.builds(CandidateNumber, distribution=st.just("poisson"), mean=st.floats(0.5, 60)),
    st.builds(
        CandidateNumber,
        distribution=st.just("negative binomial"),
        mean=st.floats(1.2, 60),
        shape=st.floats(-0.5, 5),
    ),
)


def number(mean: float, shape: float) -> CandidateNumber:
    """Return a number with that η, which stands for the Poisson distribution if it is infinite."""
    if math.isinf(shape):
        return CandidateNumber(distribution="poisson", mean=mean)
    return CandidateNumber(distribution="negative binomial", mean=mean, shape=shape)


# dp-accounting 0.6.0, `rdp_privacy_accountant._compute_rdp_repeat_and_select`, over `ORDERS`.
KNOWN = [
    (1.0, 8, 1, (5.619162312519753, 7.37650461906267, 19.146520301088863, 67.09581509712613)),
    (1.0, 8, 0, (4.615671715677946, 6.373014022220862, 18.143029704247056, 66.09232450028432)),
    (1.0, 20, 2, (8.033648278004188, 9.513317121947448, 21.181991893535944, 69.10894381168144)),
    (8.0, 8, 1, (0.7570827890649692, 0.7570827890649692, 0.8113839521190065, 1.5106787481562773)),
    (8.0, 8, 0, (0.5768788993118978, 0.5768788993118978, 0.631180062365935, 1.330474858403206)),
    (8.0, 20, 2, (1.1106556276285926, 1.1106556276285926, 1.1434430389, 1.8203949570497433)),
    (1.0, 8, math.inf, (5.797723370138881, 8.487917333627369, 20.47673148, 68.47905006599058)),
]


@pytest.mark.parametrize(("noise", "mean", "shape", "known"), KNOWN)
def test_selected_curve_equals_dp_accounting(
    noise: float, mean: float, shape: float, known: tuple[float, ...]
) -> None:
    found = number(mean, shape).selected_curve(GaussianMechanism(noise_multiplier=noise).rdp_curve)
    assert found is not None
    assert [found[ORDERS.index(order)] for order in (2, 8, 32, 128)] == pytest.approx(known)


@pytest.mark.parametrize("shape", [-0.5, 0.0, 1.0, 3.0, math.inf])
@pytest.mark.parametrize("noise", [0.7, 3.0])
def test_selected_curve_bounds_exact_divergence(noise: float, shape: float) -> None:
    """The best of K normal scores, whose density is q(y) f'(F(y)) with the generating function f.

    The mechanism releases the score itself: normal with mean 0, or 1 for the neighbour.
    """
    from scipy.special import ndtr

    chosen = number(6.0, shape)
    probabilities = chosen.probabilities(chosen.cap(1e-13))
    terms = probabilities[1:] * np.arange(1, len(probabilities))
    y = np.linspace(-14 * noise, 14 * noise, 8001)
    step = y[1] - y[0]

    def density(mean: float) -> NDArray[np.float64]:
        below = ndtr((y - mean) / noise)
        slope = np.polynomial.polynomial.polyval(below, terms)
        normal = np.exp(-((y - mean) ** 2) / (2 * noise**2)) / (noise * math.sqrt(2 * math.pi))
        found: NDArray[np.float64] = normal * slope
        return found

    bound = chosen.selected_curve(GaussianMechanism(noise_multiplier=noise).rdp_curve)
    assert bound is not None
    with np.errstate(divide="ignore"):
        ways = [np.log(density(0.0)), np.log(density(1.0))]
    for first, second in (ways, ways[::-1]):
        for order in (1.5, 2, 6, 16):
            with np.errstate(invalid="ignore"):
                logs = np.nan_to_num(order * first + (1 - order) * second, nan=-np.inf)
            largest = logs.max()
            whole = largest + math.log(float(np.exp(logs - largest).sum() * step))
            # No candidate at all has the same probability on both sides, and only lowers it.
            if math.isinf(shape):
                whole = np.logaddexp(whole, math.log(probabilities[0]))
            exact = whole / (order - 1)
            assert 0 <= exact <= bound[ORDERS.index(order)] + 1e-6


@given(NUMBERS, st.sampled_from([1e-3, 1e-9]))
def test_number_has_its_mean_and_its_cap(chosen: CandidateNumber, tail: float) -> None:
    try:
        most = chosen.cap(tail)
    except PrivacyError:
        assert chosen.distribution == "negative binomial"
        return
    probabilities = chosen.probabilities(20_000)
    assert probabilities.sum() == pytest.approx(1, abs=1e-9)
    assert probabilities @ np.arange(len(probabilities)) == pytest.approx(chosen.mean, rel=1e-6)
    assert probabilities[most + 1 :].sum() <= tail
    assert most == 1 or probabilities[most:].sum() > tail
    drawn = [chosen.draw(uniform, most) for uniform in np.linspace(0, 1, 21)[:-1]]
    assert drawn == sorted(drawn)
    assert drawn[-1] <= most


def test_fixed_number_has_no_bound() -> None:
    curve = GaussianMechanism(noise_multiplier=2.0).rdp_curve
    fixed = CandidateNumber(mean=8)
    assert fixed.selected_curve(curve) is None
    assert fixed.cap(1e-9) == fixed.draw(0.3, 8) == 8


@pytest.mark.parametrize(
    ("distribution", "mean", "told"),
    [("negative binomial", 1.0, "more than 1"), ("poisson", 0.0, "mean"), ("zipf", 3.0, "zipf")],
)
def test_impossible_number_is_refused(distribution: Distribution, mean: float, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        CandidateNumber(distribution=distribution, mean=mean)
