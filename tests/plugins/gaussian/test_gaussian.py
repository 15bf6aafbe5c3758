from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats as distributions

from cohortium.plugin import (
    FederationSpec,
    PrivacyError,
    Randomness,
    RefusalError,
    RingSum,
    Workload,
    poisson_patient_batches,
)
from cohortium_gaussian import Gaussian
from tests.support.round_plans import first_round

COHORT = FederationSpec(sites=4, cohort_size=4, examples=400, rounds=5, retries=1)
GRADIENT = Workload(output="gradient", steps=1, sampling_rate=0.25)
SHARING = evolve(COHORT, min_contributors=3, max_colluding=1)
UPDATE = Workload(output="update", steps=7, sampling_rate=0.1, batch_size=10, epochs=1)


def test_replace_one_doubles_noise_and_refuses_sampling() -> None:
    one = Gaussian(adjacency="replace-one")
    with pytest.raises(PrivacyError, match="no proven bound"):
        one.plan(GRADIENT, COHORT, 10)
    whole = Workload(output="gradient", steps=1, sampling_rate=1.0)
    plans = [g.plan(whole, COHORT, 10) for g in (one, Gaussian())]
    assert first_round(plans[0]).deviation == pytest.approx(2 * first_round(plans[1]).deviation)


def test_the_guarantee_covers_retries_and_never_shrinks() -> None:
    plan = Gaussian().plan(UPDATE, COHORT, 10)
    curve = [plan.guarantee_after(range(n)).epsilon for n in range(1, COHORT.attempts + 1)]
    assert curve == sorted(curve)
    assert plan.guarantee == plan.guarantee_after(range(COHORT.attempts))
    assert 5.9 < plan.guarantee.epsilon <= 6.0
    assert plan.guarantee.epsilon_at_1e_5 > plan.guarantee.epsilon
    fewer = FederationSpec(sites=4, cohort_size=4, examples=400, rounds=5, retries=0)
    assert first_round(Gaussian().plan(UPDATE, fewer, 10)).deviation < first_round(plan).deviation


def test_seeded_noise_is_labelled_a_simulation() -> None:
    seeded = FederationSpec(
        sites=4, cohort_size=4, examples=400, rounds=5, insecure_seeded_secrets=True
    )
    guarantee = Gaussian().plan(UPDATE, seeded, 10).guarantee
    assert guarantee.simulation
    assert str(guarantee).startswith("SIMULATION, not private")


def test_batches_are_poisson_samples_from_the_secret() -> None:
    plan = Gaussian().plan(UPDATE, COHORT, 10)
    drawn = list(first_round(plan).for_site(Randomness.system()).batches(5000))
    assert len(drawn) == UPDATE.steps
    sizes = [len(batch) for batch in drawn]
    assert all(abs(size - 500) < 6 * math.sqrt(450) for size in sizes)
    assert len(set(sizes)) > 1
    again = list(first_round(plan).for_site(Randomness.system()).batches(5000))
    assert any(not np.array_equal(a, b) for a, b in zip(drawn, again, strict=True))


def one_gradient(plan_secret: Randomness, loss: float) -> tuple[torch.Tensor, float]:
    """The noised gradient of a network with one weight vector whose true gradient is `loss`·1."""
    plan = Gaussian(clip_norm=0.5).plan(GRADIENT, COHORT, 50_000)
    net = torch.nn.Linear(50_000, 1, bias=False)
    inputs = torch.full((1, 50_000), loss)
    privatizer = first_round(plan).for_site(plan_secret)
    privatizer.set_private_gradient(
        net, lambda b: net(inputs[torch.from_numpy(b)])[:, 0], np.array([0])
    )
    assert net.weight.grad is not None
    return net.weight.grad.flatten().double(), first_round(plan).deviation / plan.expected_batch


def test_the_gradient_carries_the_noise_that_was_planned() -> None:
    noised, deviation = one_gradient(Randomness.system(), 0.0)
    assert distributions.kstest(noised.numpy() / deviation, "norm").pvalue > 1e-4


def test_example_changes_gradient_by_clip_norm() -> None:
    with_it, _ = one_gradient(Randomness.insecure_from_seed(1), 10.0)
    without, _ = one_gradient(Randomness.insecure_from_seed(1), 0.0)
    assert float((with_it - without).norm()) == pytest.approx(0.5 / 25, rel=1e-3)


def test_a_site_level_release_is_clipped_then_noised() -> None:
    plan = Gaussian(unit="site", clip_norm=2.0, epsilon=50.0).plan(UPDATE, COHORT, 20_000)
    vector = torch.ones(20_000)
    released = first_round(plan).for_site(Randomness.system()).release(vector, weight=1e9)
    values = first_round(plan).decode(RingSum(released.ring, released.words, (0,))).double().numpy()
    assert values.mean() == pytest.approx(
        2 / math.sqrt(20_000), abs=6 * first_round(plan).deviation / 141
    )
    noise = (values - 2 / math.sqrt(20_000)) / first_round(plan).deviation
    assert distributions.kstest(noise, "norm").pvalue > 1e-4


def test_the_mean_of_many_sites_decodes() -> None:
    plan = Gaussian(unit="site", clip_norm=1.0, epsilon=1e4).plan(UPDATE, COHORT, 100)
    vectors = [torch.full((100,), 0.01 * k) for k in range(4)]
    total = plan.ring.zeros(100)
    for vector in vectors:
        total += first_round(plan).for_site(Randomness.system()).release(vector, 1.0).words
    mean = first_round(plan).decode(RingSum(plan.ring, total, (0, 1, 2, 3)))
    assert torch.allclose(mean, torch.full((100,), 0.015), atol=4 * first_round(plan).deviation)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_update_is_refused(value: float) -> None:
    plan = Gaussian().plan(UPDATE, COHORT, 3)
    with pytest.raises(RefusalError, match="NaN or infinity"):
        first_round(plan).for_site(Randomness.system()).release(
            torch.tensor([0.0, value, 0.0]), 1.0
        )


@pytest.mark.parametrize(
    "bad", [{"epsilon": 0.0}, {"delta": 1.0}, {"clip_norm": -1.0}, {"unit": "x"}]
)
def test_bad_parameters_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Gaussian(**bad)  # type: ignore[arg-type]


def shared_sum(plan: Any, sites: int, values: float = 0.0) -> NDArray[np.float64]:
    """What `sites` sites' releases of equal vectors add up to, in real numbers."""
    total = plan.ring.zeros(plan.length)
    for _ in range(sites):
        privatizer = first_round(plan).for_site(Randomness.system())
        total += privatizer.release(torch.full((plan.length,), values), 1.0).words
    return np.asarray(plan.code.decode(total))


@pytest.mark.parametrize("unit", ["example", "site"])
def test_honest_noise_shares_sum_to_full_noise(unit: Any) -> None:
    plan = Gaussian(noise="distributed", unit=unit, clip_norm=2.0).plan(GRADIENT, SHARING, 20_000)
    assert plan.honest == 2
    scale = plan.expected_batch if unit == "example" else 1.0
    whole = first_round(plan).mechanism.noise_multiplier * 2.0 / scale
    noise = shared_sum(plan, sites=2) / whole
    assert distributions.kstest(noise, "norm").pvalue > 1e-4
    # All four sites: more than is needed, by the square root of their number over the honest.
    assert shared_sum(plan, sites=4).std() / whole == pytest.approx(math.sqrt(2), rel=0.03)


def test_shared_guarantee_states_honest_and_colluding_sites() -> None:
    shared = Gaussian(noise="distributed").plan(GRADIENT, SHARING, 10).guarantee
    assert (shared.against, shared.honest, shared.colluding) == ("coordinator", 2, 1)
    assert any("min_contributors" in assumption for assumption in shared.assumptions)
    alone = Gaussian().plan(GRADIENT, SHARING, 10).guarantee
    assert shared.epsilon == alone.epsilon
    assert (alone.against, alone.honest, alone.colluding) == ("everyone", 1, 0)


@pytest.mark.parametrize(
    ("workload", "federation_spec", "words"),
    [
        (UPDATE, SHARING, "takes 7 steps before it releases"),
        (evolve(GRADIENT, steps=2), SHARING, "takes 2 steps before it releases"),
        (GRADIENT, evolve(SHARING, max_colluding=0), "max_colluding to 1 or more"),
        (
            GRADIENT,
            evolve(SHARING, min_contributors=1),
            "min_contributors is 1 and max_colluding 1",
        ),
        (GRADIENT, evolve(SHARING, min_contributors=2000), "1999 honest sites.*1,000 at most"),
    ],
)
def test_unsafe_shared_noise_is_refused(
    workload: Workload, federation_spec: FederationSpec, words: str
) -> None:
    with pytest.raises(PrivacyError, match=words):
        Gaussian(noise="distributed").plan(workload, federation_spec, 10)


@given(honest=st.integers(2, 8), steps=st.floats(1.0, 64.0))
@settings(deadline=None)
def test_rounded_shares_add_up_to_a_rounded_gaussian(honest: int, steps: float) -> None:
    """The bound that docs/privacy.md derives, against the lattice sum that it bounds.

    Given the sum of the shares and their rounding errors, the chance of the errors is a sum of a
    normal density over a lattice of `honest` - 1 dimensions.  It must hardly depend on where the
    lattice lies.  `steps` is a share's deviation in units of the grid.
    """
    bound = rounding_bound(honest, steps)
    if honest > 3 or steps > 4:
        assert steps <= 4 or bound < 1e-10
        return
    reach = np.arange(-int(12 * steps), int(12 * steps) + 1)
    grid = np.stack(np.meshgrid(*[reach] * (honest - 1)), axis=-1).reshape(-1, honest - 1)
    inverse = np.eye(honest - 1) + 1.0  # of the covariance 1 - 1/honest of the first shares
    for shift in (0.0, 0.25, 0.5):
        moved = (grid + shift) / steps
        weight = np.exp(-0.5 * np.einsum("ni,ij,nj->n", moved, inverse, moved)).sum()
        even = (2 * math.pi) ** ((honest - 1) / 2) / math.sqrt(honest) * steps ** (honest - 1)
        assert abs(weight / even - 1) <= bound + 1e-9


def rounding_bound(honest: int, steps: float) -> float:
    """How far the density strays, relative to itself: the dual lattice without its origin.

    Each vector w of whole numbers has wᵀ(1 - 11ᵀ/h)w ≥ |w|²/h.
    """
    spread = 2 * math.pi**2 * steps**2
    theta = 1 + 2 * sum(math.exp(-spread * n * n / honest) for n in range(1, 200))
    return float(theta ** (honest - 1) - 1)


def test_patient_enters_batch_once() -> None:
    federation_spec = evolve(COHORT, patients=120)
    plan = Gaussian(unit="patient").plan(UPDATE, federation_spec, 10)
    assert plan.expected_batch == pytest.approx(0.1 * 30)
    patients = np.repeat(np.arange(300), np.arange(300) % 7 + 1)
    drawn = list(first_round(plan).for_site(Randomness.system(), patients).batches(len(patients)))
    assert len(drawn) == UPDATE.steps
    for batch in drawn:
        assert len(np.unique(patients[batch])) == len(batch)
    sizes = [len(batch) for batch in drawn]
    assert np.mean(sizes) == pytest.approx(30, abs=6 * math.sqrt(27 / 7))


def test_images_of_patient_are_equally_likely() -> None:
    workload = Workload(output="gradient", steps=4000, sampling_rate=1.0)
    patients = np.array([5, 9, 5, 5, 9])
    batches = list(poisson_patient_batches(workload, patients, Randomness.system().stream()))
    counts = np.bincount(np.concatenate(batches), minlength=5)
    assert distributions.chisquare(counts[[0, 2, 3]]).pvalue > 1e-4
    assert distributions.chisquare(counts[[1, 4]]).pvalue > 1e-4
    assert counts.sum() == 8000


def test_patient_unit_without_patient_ids_is_refused() -> None:
    with pytest.raises(PrivacyError, match="do not say whose"):
        Gaussian(unit="patient").plan(UPDATE, COHORT, 10)
    plan = Gaussian(unit="patient").plan(UPDATE, evolve(COHORT, patients=120), 10)
    with pytest.raises(RefusalError, match="do not say whose"):
        first_round(plan).for_site(Randomness.system()).batches(100)
