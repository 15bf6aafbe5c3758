"""Test of the mechanism alone, repeated tens of thousands of times.

It runs in two worlds that differ in one unit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cohortium.auditing.bounds import max_detectable_epsilon
from cohortium.auditing.findings import ALPHA, Finding
from cohortium.auditing.hypothesis_samples import Claim, HypothesisSamples, testable
from cohortium.auditing.probe import HUGE, PARAMETERS, Probe
from cohortium.crypto.randomness import Randomness
from cohortium.errors import RunError
from cohortium.ledger.cost import costliest_round
from cohortium.privacy.accounting import GaussianMechanism, compose
from cohortium.testing.plans import PrivacyProbe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cohortium.auditing.hypothesis_samples import ClaimTest, Reals
    from cohortium.privacy.accounting import Mechanism
    from cohortium.privacy.guarantee import Guarantee
    from cohortium.roles.protocols import Privatizer
    from cohortium.roles.sessions import PrivacyPlan
    from cohortium.roles.values import FederationSpec, Workload

DELTAS = (1e-5, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9)
"""Values of δ at which a mechanism's claimed curve is tested. Each bounds another part of it."""

GROWTH = 4
"""Factor between numbers of attempts that are summed. They are 1, 4, 16, …, as many as the study
has."""

SHARES = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Shares of the claimed noise. The audit reports which of them it would have detected."""

MIN_SAMPLES = 250
"""Fewest samples that sums of attempts must leave."""


def audit_mechanism(
    privatizer: Privatizer,
    workload: Workload,
    federation_spec: FederationSpec,
    *,
    releases: int,
    tell: Callable[[float], None] = lambda _share: None,
    secret: Randomness | None = None,
) -> Finding:
    """Test the claims of `privatizer` for `workload` against noised sums.

    Args:
        privatizer: A privatizer for a network of two parameters, with the study's own terms.
        workload: The declaration of the study's trainer.
        federation_spec: The sites that take part.
        releases: Noised sums in each world. If each gradient is noised, an attempt has
            `workload.steps` of them.
        tell: Receives the share that is done.
        secret: The sites' source of secrets. It is the operating system's, unless a test must
            repeat itself.

    Raises:
        PrivacyError: The privatizer refuses the work.
        RunError: A value that it releases is not finite.
    """
    plan = privatizer.plan(workload, federation_spec, PARAMETERS)
    guarantee = plan.guarantee
    assert guarantee is not None, "an audit begins with a claim"
    # Attempts at the costliest round, which are the easiest to tell apart.
    number = costliest_round(plan, federation_spec.rounds)
    round_plan = plan.at_round(number, plan.initial_state)
    probe = Probe(
        plan=plan,
        number=number,
        workload=workload,
        guarantee=guarantee,
        secret=secret or Randomness.system(),
    )
    steps = workload.steps if PrivacyProbe(workload, plan).noises_gradients else 1
    samples = max(4, releases // steps)
    ladder = _attempt_counts(samples, federation_spec.attempts)
    claims = {attempts: _claims(plan, number, guarantee, attempts) for attempts in ladder}
    worlds = sample(probe, samples, tell)
    return _finding(worlds, claims, round_plan.mechanism, steps)


def sample(probe: Probe, samples: int, tell: Callable[[float], None]) -> HypothesisSamples:
    """Return the adversary's numbers in the two worlds, sampled in turns."""
    scales = probe.absent, HUGE
    found: Reals = np.empty((2, samples))
    for n in range(samples):
        for world, scale in enumerate(scales):
            found[world, n] = probe.attempt(scale, 2 * n + world)
        if n % 256 == 0:
            tell(n / samples)
    if not np.isfinite(found).all():
        raise RunError("the privatizer let out a value that is NaN or infinite.")
    return HypothesisSamples(found[0], found[1])


def _attempt_counts(samples: int, attempts: int) -> list[int]:
    """Return the numbers of attempts that are summed."""
    most = max(1, min(attempts, samples // MIN_SAMPLES))
    return [GROWTH**n for n in range(10) if GROWTH**n <= most]


def _claims(plan: PrivacyPlan, number: int, guarantee: Guarantee, attempts: int) -> list[Claim]:
    """Return the plan's claims for so many attempts at round `number`.

    They are its guarantee so far, and its mechanism's curve. The first claim is the guarantee at
    its own δ.
    """
    spent = plan.guarantee_after([number] * attempts)
    assert spent is not None, "a plan with a guarantee has spent something"
    said = [(spent.epsilon, spent.delta, "guarantee"), (spent.epsilon_at_1e_5, 1e-5, "guarantee")]
    mechanism = plan.at_round(number, plan.initial_state).mechanism
    if mechanism is not None:
        curve = compose([(mechanism, attempts)], guarantee.delta, *DELTAS)
        deltas = (guarantee.delta, *DELTAS)
        said += [(p.epsilon, d, "mechanism") for p, d in zip(curve, deltas, strict=True)]
    return [Claim(attempts=attempts, epsilon=e, delta=d, says=who) for e, d, who in said]


def _test_claims(
    worlds: HypothesisSamples, claims: Mapping[int, Sequence[Claim]]
) -> list[ClaimTest]:
    """Test every claim that so many samples could refute."""
    alpha = ALPHA / len(claims)
    found: list[ClaimTest] = []
    for attempts, said in claims.items():
        summed = worlds.summed(attempts)
        found += summed.test(testable(said, summed.tested, alpha), alpha)
    return found


def _finding(
    worlds: HypothesisSamples,
    claims: Mapping[int, Sequence[Claim]],
    mechanism: Mechanism | None,
    steps: int,
) -> Finding:
    samples, alpha = len(worlds.absent), ALPHA / len(claims)
    tested = _test_claims(worlds, claims)
    broken = sorted((t for t in tested if t.is_refuted), key=lambda t: t.p / t.alpha)
    bounds = {k: worlds.summed(k).bound(said[0], alpha) for k, said in claims.items()}
    most = {
        k: max_detectable_epsilon(worlds.summed(k).tested, delta=said[0].delta, alpha=alpha / 2)
        for k, said in claims.items()
    }
    largest = max(bounds, key=lambda k: bounds[k])
    delta = claims[1][0].delta
    seen = "; ".join(
        f"{k} attempt{'s' if k > 1 else ''} cost at least ε = {bounds[k]:.3g}, and at most "
        f"{said[0].epsilon:.3g} by the claim"
        for k, said in claims.items()
    )
    if broken:
        worst = broken[0]
        seen += (
            f". The {worst.claim.says} says that {worst.claim.attempts} of them keep within ε = "
            f"{worst.claim.epsilon:.3g} at δ = {worst.claim.delta:.3g}, and what was seen has a "
            f"chance below {max(worst.p, 1e-99):.1g} if that is so"
        )
    return Finding(
        check="mechanism",
        procedure=(
            f"{samples * steps:,} noised sums in each of two worlds that differ in one unit, "
            f"{len(tested)} claims at δ from {min(t.claim.delta for t in tested):.2g} to "
            f"{max(t.claim.delta for t in tested):.2g}, {1 - ALPHA:.1%} confidence over all"
            if tested
            else f"{samples * steps:,} noised sums in each of two worlds, too few for any claim"
        ),
        observation=f"at δ = {delta:.3g}, {seen}.",
        detection_limit=_detection_limit(worlds, claims, mechanism, steps, most[largest]),
        is_refuted=bool(broken),
        bound=bounds[largest],
        max_detectable_epsilon=most[largest],
        claim=claims[largest][0].epsilon,
    )


def _detection_limit(
    worlds: HypothesisSamples,
    claims: Mapping[int, Sequence[Claim]],
    mechanism: Mechanism | None,
    steps: int,
    most: float,
) -> str:
    """Describe the limit of the samples: largest ε and detectable share.

    In a simulation, the share is the largest part of the claimed noise that the audit detects.
    """
    sentence = f"so many samples cannot show more than ε = {most:.3g} at this δ in any case"
    if not isinstance(mechanism, GaussianMechanism):
        return f"{sentence}."
    rng = np.random.default_rng(0)
    shape = (len(worlds.absent), steps)
    noticed = next(
        (
            share
            for share in SHARES
            if any(
                t.is_refuted
                for t in _test_claims(_simulated_mechanism(mechanism, share, shape, rng), claims)
            )
        ),
        None,
    )
    if noticed is None:
        return f"{sentence}, and half the noise would not be noticed: ask for more releases."
    return (
        f"{sentence}; but one attempt is held to its whole curve, and in a simulation "
        f"noise of {noticed:.0%} of what is claimed was noticed."
    )


def _simulated_mechanism(
    mechanism: GaussianMechanism, share: float, shape: tuple[int, int], rng: np.random.Generator
) -> HypothesisSamples:
    """Simulate a Gaussian mechanism with `share` of the noise."""
    noise = share * mechanism.noise_multiplier * rng.standard_normal((2, *shape)).sum(axis=2)
    return HypothesisSamples(
        noise[0], noise[1] + (rng.random(shape) < mechanism.sampling_rate).sum(axis=1)
    )
