"""The mechanism alone, tens of thousands of times, in two worlds that differ in one unit.

The adversary is the strongest that the guarantee is made against.  It chooses everybody's data; it
sees each noised sum of one site, or each sum over as few honest sites as the noise is sized for;
and it replays what is public: where the batches do not depend on the secret, it knows them, and
aims at a unit that will be in many.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from attrs import field, frozen

from cohortium import vector
from cohortium.accounting import EPSILON_ERROR, Gaussian, compose
from cohortium.auditing.findings import ALPHA, Finding
from cohortium.auditing.bounds import ceiling
from cohortium.auditing.worlds import Claim, Worlds, testable
from cohortium.counting import guarded
from cohortium.errors import RunError
from cohortium.randomness import Randomness
from cohortium.testing.plans import Trial

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from cohortium.accounting import Mechanism
    from cohortium.auditing.worlds import Reals, Tested
    from cohortium.guarantee import Guarantee
    from cohortium.protocols import PrivacyPlan, Privatizer, SitePrivacy
    from cohortium.vocabulary import Cohort, Index, Work

PARAMETERS = 2
"""Of the probing network: the probed unit's direction, and everybody else's."""

HUGE = 1e6
"""The probed unit's gradient, or the probed site's update; of `clip` it must not leave a trace."""

MOST_EXAMPLES = 1024
"""At a probing site."""

DELTAS = (1e-5, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9)
"""Where the curve that a mechanism claims is tested: each δ bounds another part of it."""

GROWTH = 4
"""Attempts that are added up: 1, 4, 16, …, as many as the study has."""

SHARES = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Of the claimed noise: which of them would have been noticed is told."""

BOOKS_SLACK = 0.99
"""How much less than composition gives a guarantee may say, for the accountants' rounding."""

FEWEST = 250
"""Samples below which adding up attempts is given up."""


@frozen(eq=False, kw_only=True)
class Probe:
    """A plan for the probing network, and how the adversary plays it.

    Attributes:
        plan: The privatizer's own, for a network of two parameters.
        work: What it was made for.
        guarantee: What it claims.
        secret: The sites' source of secrets; the operating system's.
    """

    plan: PrivacyPlan
    work: Work
    guarantee: Guarantee
    secret: Randomness = field(factory=Randomness.system)
    _trial: Trial = field(init=False)
    _net: nn.Module = field(init=False)
    _patients: Index = field(init=False)

    @_trial.default
    def _make_trial(self) -> Trial:
        return Trial(self.work, self.plan)

    @_net.default
    def _make_net(self) -> nn.Module:
        import torch

        return torch.nn.Linear(PARAMETERS, 1, bias=False)

    @_patients.default
    def _make_patients(self) -> Index:
        # Enough for batches that hold a few; two images of each patient.
        size = min(MOST_EXAMPLES, max(8, math.ceil(4 / self.work.sampling_rate)))
        return np.arange(size, dtype=np.int64) // (2 if self.guarantee.unit == "patient" else 1)

    @property
    def sites(self) -> int:
        """Sites whose sum the adversary sees."""
        return self.guarantee.honest if self.guarantee.against == "coordinator" else 1

    @property
    def absent(self) -> float:
        """The factor that stands for the neighbouring unit."""
        return -HUGE if self.guarantee.adjacency == "replace-one" else 0.0

    def attempt(self, scale: float, attempt: int) -> float:
        """The adversary's number after an attempt in which the probed unit counts `scale`."""
        sites = [self._site(attempt, site) for site in range(self.sites)]
        if self.guarantee.unit == "site":
            words = [
                private.release(self._direction(scale if site == 0 else 0.0), 1.0).words
                for site, private in enumerate(sites)
            ]
            return float(self._trial.decoded(words)[0])
        features = self._features(scale, self._aim(attempt))
        others = self._features(0.0, np.arange(0))
        seen = [self._steps(p, others if k else features) for k, p in enumerate(sites)]
        if self._trial.noises_gradients:
            return float(sum(gradient[0] for gradient in seen[0]))
        words = [p.release(g[-1], 1.0).words for p, g in zip(sites, seen, strict=True)]
        return float(self._trial.decoded(words)[0])

    def _site(self, *label: int) -> SitePrivacy:
        private = self.plan.site(self.secret.fork(*label), self._patients)
        return guarded(private, self.guarantee, self.work)

    def _steps(self, private: SitePrivacy, features: Tensor) -> list[Tensor]:
        """Each gradient of an attempt, shape (2,)."""
        import torch

        def losses(batch: Index) -> Tensor:
            out: Tensor = self._net(features[torch.from_numpy(batch)])
            return out[:, 0]

        found = []
        for batch in private.batches(len(features)):
            private.gradient(self._net, losses, batch)
            found.append(vector.flatten_gradients(self._net, before=torch.zeros(0)))
        return found

    def _aim(self, attempt: int) -> Index:
        """The images of the unit that is in most batches of a replay with other secrets."""
        replay = self.plan.site(self.secret.fork("replay", attempt), self._patients)
        drawn = [self._patients[batch] for batch in replay.batches(len(self._patients))]
        counts = np.bincount(np.concatenate(drawn), minlength=1)
        return np.flatnonzero(self._patients == np.argmax(counts))

    def _features(self, scale: float, probed: Index) -> Tensor:
        """What the network is fed: each row is that example's gradient, shape (N, 2)."""
        import torch

        features = torch.zeros(len(self._patients), PARAMETERS)
        features[:, 1] = 1.0
        features[torch.from_numpy(probed)] = self._direction(scale)
        return features

    def _direction(self, scale: float) -> Tensor:
        import torch

        return torch.tensor([scale, 0.0])


def audit_mechanism(
    privatizer: Privatizer,
    work: Work,
    cohort: Cohort,
    *,
    releases: int,
    tell: Callable[[float], None] = lambda share: None,
    secret: Randomness | None = None,
) -> Finding:
    """Hold what `privatizer` claims for `work` against `releases` noised sums in each world.

    Args:
        privatizer: Made to plan for a network of two parameters, with the study's own terms.
        work: What the study's trainer declared.
        cohort: Who takes part.
        releases: Noised sums in each world; an attempt has `work.steps` of them where each
            gradient is noised.
        tell: Told of the share that is done.
        secret: The sites' source; the operating system's unless a test must repeat itself.

    Raises:
        PrivacyError: The privatizer refuses the work.
        RunError: What it lets out is not finite.
    """
    plan = privatizer.plan(work, cohort, PARAMETERS)
    guarantee = plan.guarantee
    assert guarantee is not None, "an audit begins with a claim"
    probe = Probe(plan=plan, work=work, guarantee=guarantee, secret=secret or Randomness.system())
    steps = work.steps if Trial(work, plan).noises_gradients else 1
    samples = max(4, releases // steps)
    ladder = _ladder(samples, cohort.attempts)
    claims = {attempts: _claims(plan, guarantee, attempts) for attempts in ladder}
    worlds = sample(probe, samples, tell)
    return _finding(worlds, claims, plan.mechanism, steps)


def sample(probe: Probe, samples: int, tell: Callable[[float], None]) -> Worlds:
    """The adversary's numbers in the two worlds, in turns."""
    scales = probe.absent, HUGE
    found: Reals = np.empty((2, samples))
    for n in range(samples):
        for world, scale in enumerate(scales):
            found[world, n] = probe.attempt(scale, 2 * n + world)
        if n % 256 == 0:
            tell(n / samples)
    if not np.isfinite(found).all():
        raise RunError("the privatizer let out a value that is NaN or infinite.")
    return Worlds(found[0], found[1])


def _ladder(samples: int, attempts: int) -> list[int]:
    """How many attempts are added up."""
    most = max(1, min(attempts, samples // FEWEST))
    return [GROWTH**n for n in range(10) if GROWTH**n <= most]


def _claims(plan: PrivacyPlan, guarantee: Guarantee, attempts: int) -> list[Claim]:
    """What the plan says of so many attempts: its guarantee so far, and its mechanism's curve.

    The first is the guarantee at its own δ.
    """
    spent = plan.spent(attempts)
    assert spent is not None, "a plan with a guarantee has spent something"
    said = [(spent.epsilon, spent.delta, "guarantee"), (spent.epsilon_at_1e_5, 1e-5, "guarantee")]
    if plan.mechanism is not None:
        curve = compose([(plan.mechanism, attempts)], guarantee.delta, *DELTAS)
        deltas = (guarantee.delta, *DELTAS)
        said += [(p.epsilon, d, "mechanism") for p, d in zip(curve, deltas, strict=True)]
    return [Claim(attempts=attempts, epsilon=e, delta=d, says=who) for e, d, who in said]


def _tested(worlds: Worlds, claims: Mapping[int, Sequence[Claim]]) -> list[Tested]:
    """Every claim that so many samples could refute, against them."""
    alpha = ALPHA / len(claims)
    found: list[Tested] = []
    for attempts, said in claims.items():
        summed = worlds.summed(attempts)
        found += summed.test(testable(said, summed.tested, alpha), alpha)
    return found


def _finding(
    worlds: Worlds,
    claims: Mapping[int, Sequence[Claim]],
    mechanism: Mechanism | None,
    steps: int,
) -> Finding:
    samples, alpha = len(worlds.absent), ALPHA / len(claims)
    tested = _tested(worlds, claims)
    broken = sorted((t for t in tested if t.is_refuted), key=lambda t: t.p / t.alpha)
    bounds = {k: worlds.summed(k).bound(said[0], alpha) for k, said in claims.items()}
    most = {
        k: ceiling(worlds.summed(k).tested, delta=said[0].delta, alpha=alpha / 2)
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
        way="mechanism",
        tried=(
            f"{samples * steps:,} noised sums in each of two worlds that differ in one unit, "
            f"{len(tested)} claims at δ from {min(t.claim.delta for t in tested):.2g} to "
            f"{max(t.claim.delta for t in tested):.2g}, {1 - ALPHA:.1%} confidence over all"
            if tested
            else f"{samples * steps:,} noised sums in each of two worlds, too few for any claim"
        ),
        seen=f"at δ = {delta:.3g}, {seen}.",
        power=_power(worlds, claims, mechanism, steps, most[largest]),
        is_refuted=bool(broken),
        bound=bounds[largest],
        ceiling=most[largest],
        claim=claims[largest][0].epsilon,
    )


def _power(
    worlds: Worlds,
    claims: Mapping[int, Sequence[Claim]],
    mechanism: Mechanism | None,
    steps: int,
    most: float,
) -> str:
    """What so many samples can show: the ceiling, and how little noise would have been noticed."""
    sentence = f"so many samples cannot show more than ε = {most:.3g} at this δ, whatever happens"
    if not isinstance(mechanism, Gaussian):
        return f"{sentence}."
    rng = np.random.default_rng(0)
    shape = (len(worlds.absent), steps)
    noticed = next(
        (
            share
            for share in SHARES
            if any(t.is_refuted for t in _tested(_imitated(mechanism, share, shape, rng), claims))
        ),
        None,
    )
    if noticed is None:
        return f"{sentence}, and half the noise would not be noticed: ask for more releases."
    return (
        f"{sentence}; but one attempt is held to its whole curve, and in a simulation "
        f"noise of {noticed:.0%} of what is claimed was noticed."
    )


def _imitated(
    mechanism: Gaussian, share: float, shape: tuple[int, int], rng: np.random.Generator
) -> Worlds:
    """What a Gaussian mechanism with `share` of the noise would have shown."""
    noise = share * mechanism.noise_multiplier * rng.standard_normal((2, *shape)).sum(axis=2)
    return Worlds(noise[0], noise[1] + (rng.random(shape) < mechanism.sampling_rate).sum(axis=1))


def audit_books(plan: PrivacyPlan, attempts: int) -> Finding:
    """Hold the guarantee to what the plan's own mechanism costs over all attempts.

    Measurement at a large ε has little power over a whole run, and much over one attempt; what
    one attempt costs is the mechanism's claim, and this is the sum.
    """
    guarantee, mechanism = plan.guarantee, plan.mechanism
    assert guarantee is not None, "an audit begins with a claim"
    assert mechanism is not None, "a guarantee has a mechanism"
    claims = {guarantee.delta: guarantee.epsilon, 1e-5: guarantee.epsilon_at_1e_5}
    spent = compose([(mechanism, attempts)], *claims)
    is_exact = isinstance(mechanism, Gaussian)
    return Finding(
        way="books",
        tried=f"{attempts} attempts of the mechanism that the plan names, composed anew",
        seen="; ".join(
            f"ε = {point.epsilon:.4g} at δ = {delta:.3g}, where the guarantee says {epsilon:.4g}"
            for point, (delta, epsilon) in zip(spent, claims.items(), strict=True)
        )
        + ".",
        power=(
            "it is arithmetic: it finds a budget that was counted for fewer attempts than the run "
            "has, at any ε; whether the mechanism is what the plan says is the other ways' matter."
            if is_exact
            else "the mechanism is known by a bound, which another accountant may well improve "
            "upon: nothing is refuted by this way."
        ),
        is_refuted=is_exact
        and any(
            epsilon < BOOKS_SLACK * point.epsilon - 2 * EPSILON_ERROR
            for point, epsilon in zip(spent, claims.values(), strict=True)
        ),
        claim=guarantee.epsilon,
    )
