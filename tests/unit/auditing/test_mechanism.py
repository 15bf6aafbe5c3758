"""The mechanism alone: every planted fault is caught, and the honest ones pass."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve

from cohortium.auditing import Finding, audit_accounting, audit_mechanism
from cohortium.plugin import FederationSpec, Randomness, Workload
from cohortium_gaussian import Gaussian
from cohortium_skellam import Skellam
from tests.support.faulty_privatizers import (
    Broken,
    Fixed,
    PublicBatches,
    RestartsAccountant,
    forgets_clip,
    with_noise,
)

COHORT = FederationSpec(
    sites=4,
    cohort_size=4,
    min_contributors=3,
    max_colluding=1,
    examples=400,
    patients=200,
    rounds=4,
    retries=0,
)
WHOLE = Workload(output="gradient", steps=1, sampling_rate=1.0)
SAMPLED = Workload(output="gradient", steps=1, sampling_rate=0.25)
STEPS = Workload(output="update", steps=3, sampling_rate=1.0, batch_size=100)


def gaussian(noise_multiplier: float = 0.7, **terms: Any) -> Fixed:
    """Little noise, so that few releases tell much."""
    return Fixed(Gaussian(delta=1e-5, **terms), noise_multiplier)


HONEST: dict[str, tuple[Any, Workload]] = {
    "example": (gaussian(), WHOLE),
    "example-shared": (gaussian(noise="distributed"), WHOLE),
    "example-replaced": (gaussian(adjacency="replace-one", clip_norm=7.0), WHOLE),
    "example-steps": (gaussian(), STEPS),
    "patient": (gaussian(unit="patient"), WHOLE),
    "patient-shared": (gaussian(unit="patient", noise="distributed"), WHOLE),
    "site": (gaussian(unit="site"), STEPS),
    "site-shared": (gaussian(unit="site", noise="distributed"), STEPS),
    "sampled": (gaussian(), SAMPLED),
}
NAMES = [pytest.param(name, marks=[] if name == "site" else [pytest.mark.slow]) for name in HONEST]
UNSAMPLED = [name for name in NAMES if name.values != ("sampled",)]
RELEASES = 240


def audited(
    privatizer: Any, workload: Workload, releases: int, federation_spec: FederationSpec = COHORT
) -> Finding:
    # A seed in place of the operating system: what is found is found every time.
    secret = Randomness.insecure_from_seed(5)
    return audit_mechanism(privatizer, workload, federation_spec, releases=releases, secret=secret)


def few(name: str) -> int:
    """Releases for a test: an attempt may have several of them."""
    privatizer, workload = HONEST[name]
    if workload is SAMPLED:
        return 4 * RELEASES  # a unit that is seldom in a batch is seldom seen
    return RELEASES * (1 if privatizer.terms.unit == "site" else workload.steps)


def passes(finding: Finding) -> None:
    assert not finding.is_refuted, finding
    assert finding.bound is not None
    assert finding.claim is not None
    assert finding.bound <= finding.claim


def test_honest_mechanism_is_not_refuted() -> None:
    passes(audited(*HONEST["site"], few("site")))


@pytest.mark.slow
@pytest.mark.parametrize("name", HONEST)
def test_honest_mechanism_with_system_noise_is_not_refuted(name: str) -> None:
    privatizer, workload = HONEST[name]
    # With half of these, half of the noise is found to be too little.
    passes(audit_mechanism(privatizer, workload, COHORT, releases=2 * few(name)))


@pytest.mark.parametrize("name", NAMES)
def test_missing_noise_is_detected(name: str) -> None:
    privatizer, workload = HONEST[name]
    finding = audited(Broken(privatizer, with_noise(0.0)), workload, few(name) // 2)
    assert finding.is_refuted, finding
    assert "if that is so" in finding.observation


@pytest.mark.parametrize("name", UNSAMPLED)
def test_halved_noise_is_detected(name: str) -> None:
    privatizer, workload = HONEST[name]
    finding = audited(Broken(privatizer, with_noise(0.5)), workload, few(name))
    assert finding.is_refuted, finding
    assert "if that is so" in finding.observation


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["local", "distributed"])
def test_integer_noise_is_not_refuted(noise: Any) -> None:
    # Of so many, half of the noise would have a chance below 1e-10 under the claim.
    finding = audited(Skellam(noise=noise), WHOLE, 1250)
    assert not finding.is_refuted, finding


@pytest.mark.slow
def test_halved_noise_under_sampling_is_detected() -> None:
    privatizer, workload = HONEST["sampled"]
    finding = audited(Broken(privatizer, with_noise(0.5)), workload, 2500)
    assert finding.is_refuted, finding


@pytest.mark.parametrize("name", UNSAMPLED)
def test_unapplied_clip_is_detected(name: str) -> None:
    privatizer, workload = HONEST[name]
    finding = audited(Broken(privatizer, forgets_clip), workload, few(name) // 2)
    assert finding.is_refuted, finding


@pytest.mark.slow
def test_batches_from_public_seed_are_detected() -> None:
    privatizer, workload = HONEST["sampled"]
    finding = audited(Broken(privatizer, PublicBatches), workload, 320)
    assert finding.is_refuted, finding
    # At the strength of a batch that everyone is in, the noise is what the mechanism says.
    whole = audited(Broken(gaussian(), PublicBatches), WHOLE, RELEASES)
    assert not whole.is_refuted


@pytest.mark.slow
def test_restarting_accountant_is_detected() -> None:
    restarts = RestartsAccountant(Gaussian(unit="site", epsilon=2.0, delta=1e-5))
    federation_spec = evolve(COHORT, rounds=16)
    finding = audited(restarts, STEPS, 16_000, federation_spec)
    assert finding.is_refuted, finding
    assert "The guarantee says that 16 of them" in finding.observation
    # One round is what it says; only together do they cost more.
    assert not audited(restarts, STEPS, 4000, evolve(federation_spec, rounds=1)).is_refuted


@pytest.mark.parametrize("epsilon", [0.5, 6.0, 50.0])
def test_accounting_audit_detects_restart_at_any_epsilon(epsilon: float) -> None:
    honest = Gaussian(unit="site", epsilon=epsilon)
    federation_spec = evolve(COHORT, rounds=20)
    assert audit_accounting(
        RestartsAccountant(honest).plan(STEPS, federation_spec, 2), federation_spec
    ).is_refuted
    assert not audit_accounting(honest.plan(STEPS, federation_spec, 2), federation_spec).is_refuted


def test_accounting_audit_passes_sampled_batches() -> None:
    plan = HONEST["sampled"][0].plan(SAMPLED, COHORT, 2)
    finding = audit_accounting(plan, COHORT)
    assert not finding.is_refuted, finding


def test_detection_limit_grows_with_releases() -> None:
    some, more = (audited(gaussian(3.0, unit="site"), STEPS, n) for n in (60, 3000))
    assert some.max_detectable_epsilon is not None
    assert more.max_detectable_epsilon is not None
    assert some.max_detectable_epsilon < more.max_detectable_epsilon
    assert "ask for more releases" in some.detection_limit
    assert "of what is claimed was noticed" in more.detection_limit
