"""The contract of a `Privatizer`'s bookkeeping: plans, batches, encoding and decoding.

`testing.guarantees` measures whether the noise keeps the guarantee.
"""

from __future__ import annotations

import itertools
import math
import pickle
from typing import TYPE_CHECKING

import attrs
import numpy as np

from cohortium.errors import RefusalError
from cohortium.ledger.cost import costliest_round, run_costs
from cohortium.messages.run import MAX_PLAN_STATE
from cohortium.privacy.accounting import compose
from cohortium.testing.contract import Check, ConformanceError, ensure
from cohortium.testing.plans import (
    COHORT,
    EXAMPLES,
    PARAMETERS,
    ProbeNetwork,
    privacy_probes,
)
from cohortium.testing.probes import ProbePrivatizer

if TYPE_CHECKING:
    from torch import Tensor

    from cohortium.roles.protocols import Privatizer
    from cohortium.roles.values import ExampleIndices
    from cohortium.testing.plans import PrivacyProbe, Reals

MECHANISM_SLACK = 0.98
"""Smallest ratio of the mechanism's ε to the guarantee's ε.

The accountant of a mechanism may be tighter than the one of the guarantee.
"""

DRAWS = 32
"""Number of random draws."""


def check_plan_is_repeatable(privatizer: Privatizer) -> None:
    """Equal arguments give every party the same plan."""
    first = privacy_probes(privatizer)[0]
    again = privatizer.plan(first.workload, COHORT, PARAMETERS)
    for name in ("guarantee", "ring", "length"):
        ensure(
            getattr(first.plan, name) == getattr(again, name),
            f"two plans for one study differ in their {name}; site and coordinator would not "
            "understand each other. Compute it from the arguments alone.",
        )


def check_spent(privatizer: Privatizer) -> None:
    """The guarantee's ε grows with the attempts, up to the run's guarantee."""
    for plan in (trial.plan for trial in privacy_probes(privatizer)):
        rounds = [*range(COHORT.rounds), *[costliest_round(plan, COHORT.rounds)] * COHORT.retries]
        spent = [plan.guarantee_after(rounds[: n + 1]) for n in range(len(rounds))]
        if plan.guarantee is None:
            ensure(
                spent == [None] * len(spent),
                "the plan promises nothing, and yet something is spent; give None for both.",
            )
            continue
        ensure(
            spent[-1] == plan.guarantee,
            f"all {COHORT.attempts} attempts are said to spend {spent[-1]}, but the plan "
            f"guarantees {plan.guarantee}; a guarantee is of rounds and retries together.",
        )
        course = [math.inf if s is None else s.epsilon for s in spent]
        ensure(
            all(a <= b for a, b in itertools.pairwise(course)),
            f"ε by attempt goes {course}; it can only grow.",
        )
        ensure(
            plan.guarantee.simulation,
            "the noise was seeded, and the guarantee does not say so; set simulation from "
            "cohort.insecure_seeded_secrets.",
        )


def check_mechanism(privatizer: Privatizer) -> str | None:
    """The mechanism costs a ledger no less than the guarantee says.

    The check composes the mechanism over all attempts.
    """
    plans = [trial.plan for trial in privacy_probes(privatizer)]
    for plan in plans:
        guarantee = plan.guarantee
        mechanism = plan.at_round(0, plan.initial_state).mechanism
        ensure(
            (guarantee is None) == (mechanism is None),
            f"the guarantee is {guarantee} and the mechanism {mechanism}; a plan has both or none.",
        )
        if guarantee is None:
            continue
        costs = run_costs(plan, COHORT.rounds, COHORT.retries)
        spends = [(cost.mechanism, n) for cost, n in costs.items() if cost.mechanism is not None]
        (spent,) = compose(spends, guarantee.delta)
        ensure(
            spent.epsilon >= MECHANISM_SLACK * guarantee.epsilon,
            f"{COHORT.attempts} attempts of the mechanism compose to ε = {spent.epsilon:.4g}, and "
            f"the guarantee says {guarantee.epsilon:.4g}; a ledger would count too little. Give "
            "the mechanism of one whole attempt.",
        )
    return None if any(plan.guarantee for plan in plans) else "not needed: nothing is guaranteed"


def check_plan_is_a_value(privatizer: Privatizer) -> None:
    """No method changes a plan, and its copy in another process releases the same.

    All that changes between rounds is the state, which comes from a released sum.
    """
    for trial in privacy_probes(privatizer):
        plan, vectors = trial.plan, [_direction(k) * 0.01 for k in range(COHORT.cohort_size)]
        before = trial.releases(vectors)
        total = trial.total(before)
        trial.round_plan.decode(total)
        state = trial.round_plan.next_state(total)
        ensure(
            all(map(np.array_equal, before, trial.releases(vectors))),
            "decode or next_state changed the plan, so a site in another process would still "
            "have the old one; return what changes from next_state, and take it in at_round.",
        )
        copy = attrs.evolve(trial, plan=pickle.loads(pickle.dumps(plan)))  # noqa: S301 - our own
        ensure(
            all(map(np.array_equal, before, copy.releases(vectors))),
            "a pickled plan releases something else than the plan; keep all of it in its fields.",
        )
        ensure(
            isinstance(state, tuple)
            and len(state) == len(plan.initial_state) <= MAX_PLAN_STATE
            and all(isinstance(value, float) and math.isfinite(value) for value in state),
            f"next_state gave {state!r} after {plan.initial_state!r}; give as many finite numbers, "
            f"{MAX_PLAN_STATE:,} at most.",
        )
        costs = [plan.at_round(1, each).mechanism for each in (plan.initial_state, state)]
        ensure(
            costs[0] == costs[1],
            f"round 1 applies {costs[0]} or {costs[1]}, by the state; the mechanism of a round "
            "must be known before the run.",
        )


def check_refuses_foreign_state(privatizer: Privatizer) -> str | None:
    """A state that a lying coordinator made up raises an error."""
    plans = [trial.plan for trial in privacy_probes(privatizer) if trial.plan.initial_state]
    for plan in plans:
        state = plan.initial_state
        for bad in ((), (*state, 0.0), (math.nan,) * len(state), (math.inf,) * len(state)):
            try:
                plan.at_round(0, bad)
            except RefusalError:
                continue
            raise ConformanceError(
                f"at_round took the state {bad}, where the first one is {state}; raise "
                "RefusalError for a state that the plan does not have."
            )
    return None if plans else "not needed: all rounds are alike"


def check_batches(privatizer: Privatizer) -> None:
    """Batches are positions at the site, a function of the secret."""
    for trial in privacy_probes(privatizer):
        one, other = (list(trial.site(0, 0, 0).batches(EXAMPLES)) for _ in range(2))
        ensure(
            len(one) == len(other) and all(map(np.array_equal, one, other)),
            "one secret gave two series of batches; draw them from the secret that `site` is "
            "given, so that a seeded simulation can be repeated.",
        )
        for batch in one:
            ensure(
                batch.ndim == 1
                and len(np.unique(batch)) == len(batch)
                and (batch.size == 0 or (batch.min() >= 0 and batch.max() < EXAMPLES)),
                f"a batch over {EXAMPLES} examples is {batch}; it must hold positions of theirs, "
                "none twice.",
            )


def check_batches_are_poisson(privatizer: Privatizer) -> str | None:
    """Under example-level privacy, each example enters batches by its own coin.

    The coin is secret, and independent for each batch.
    """
    sampled = [
        t
        for t in privacy_probes(privatizer)
        if t.workload.sampling_rate < 1 and t.unit in ("example", "patient")
    ]
    if not sampled:
        return "not needed: no guarantee rests on sampled examples"
    for trial in sampled:
        workload = trial.workload
        rounds = [list(trial.site(0, draw, 0).batches(EXAMPLES)) for draw in range(DRAWS)]
        ensure(
            all(len(batches) == workload.steps for batches in rounds),
            f"{workload.steps} steps were declared, but {[len(b) for b in rounds][:3]}… batches "
            f"drawn; "
            "noise is calibrated to the declaration.",
        )
        drawn = [batch for batches in rounds for batch in batches]
        distinct = {batch.tobytes() for batch in drawn}
        sizes = np.array([len(batch) for batch in drawn])
        deviation = math.sqrt(EXAMPLES * workload.sampling_rate * (1 - workload.sampling_rate))
        ensure(
            len(distinct) > len(drawn) // 2,
            "different secrets, or steps, gave equal batches; amplification by sampling holds only "
            "for fresh and secret draws.",
        )
        ensure(
            0.5 * deviation < sizes.std() < 2 * deviation
            and abs(sizes.mean() - EXAMPLES * workload.sampling_rate)
            < 6 * deviation / math.sqrt(len(drawn)),
            f"sizes of batches over {EXAMPLES} examples at rate {workload.sampling_rate} have mean "
            f"{sizes.mean():.2f} and deviation {sizes.std():.2f}; Poisson sampling gives "
            f"{EXAMPLES * workload.sampling_rate:.2f} and {deviation:.2f}. Use plugin.poisson.",
        )
    return None


def check_gradient(privatizer: Privatizer) -> None:
    """Gradients are finite, and without noise they are the mean.

    They are finite for an empty batch, too.
    """
    import torch

    for trial in privacy_probes(privatizer):
        for batch in (_all(), _all()[:0]):
            found = ProbeNetwork().gradient(trial.site(0, 0, 0), batch)
            ensure(
                torch.isfinite(found).all(),
                f"a batch of {len(batch)} gave gradients that are not finite; divide by declared "
                "numbers only.",
            )
        if trial.unit is None:
            _ensure_mean(trial)


def check_release(privatizer: Privatizer) -> None:
    """A release depends on vector and secret alone, in the plan's ring.

    It has `length` words.
    """
    for trial in privacy_probes(privatizer):
        one, other = (
            trial.site(0, 0, 0).release(_direction(0) * 0.01, float(EXAMPLES)) for _ in range(2)
        )
        plan = trial.plan
        ensure(
            one.ring == plan.ring
            and one.words.shape == (plan.length,)
            and one.words.dtype == plan.ring.dtype,
            f"a release is {one.words.shape} words of {one.words.dtype} in {one.ring}, where the "
            f"plan says ({plan.length},) of {plan.ring.dtype} in {plan.ring}.",
        )
        ensure(
            np.array_equal(one.words, other.words),
            "one vector and one secret gave two releases; draw noise and rounding from the secret "
            "that `site` is given, so that a seeded simulation can be repeated.",
        )


def check_refuses_non_finite(privatizer: Privatizer) -> None:
    """A vector with NaN or infinity raises an error."""
    for trial, bad in itertools.product(
        privacy_probes(privatizer), (math.nan, math.inf, -math.inf)
    ):
        vector = _direction(0) * 0.01
        vector[3] = bad
        try:
            trial.site(0, 0, 0).release(vector, float(EXAMPLES))
        except RefusalError:
            continue
        raise ConformanceError(
            f"a vector holding {bad} was released; it would spoil the sum of all sites. Raise "
            "RefusalError."
        )


def check_refuses_out_of_range(privatizer: Privatizer) -> str | None:
    """Without noise, a value outside the ring's range is refused.

    It never wraps.
    """
    exact = [trial for trial in privacy_probes(privatizer) if trial.unit is None]
    for trial in exact:
        large = _direction(0) * 1e9
        try:
            found = trial.released([large])
        except RefusalError:
            continue
        ensure(
            np.allclose(found, large.double().numpy(), rtol=1e-3),
            "a vector of norm 1e9 was released and decoded to something else: it wrapped in the "
            "ring. Raise RefusalError for a vector that the ring was not sized for.",
        )
    return None if exact else "not needed: noise makes a wrap unlikely, by the plan's own sizing"


def check_round_trip(privatizer: Privatizer) -> None:
    """The sum of releases decodes to the vectors' mean, apart from noise.

    Equal secrets make equal noise, which therefore cancels between vectors and zeros.
    """
    for trial in privacy_probes(privatizer):
        vectors = [_direction(k) * _scale(trial) for k in range(COHORT.cohort_size)]
        wanted = np.mean([v.double().numpy() for v in vectors], axis=0)
        blank = [v * 0 for v in vectors]
        apart = np.stack(
            [trial.released(vectors, n) - trial.released(blank, n) for n in range(DRAWS)]
        )
        found, rounding = apart.mean(axis=0), math.sqrt(apart.var(axis=0).sum() / DRAWS)
        ensure(
            found.shape == (PARAMETERS,),
            f"decode gave {found.shape} numbers for {PARAMETERS} parameters; give the mean vector "
            "and nothing else.",
        )
        error, size = float(np.linalg.norm(found - wanted)), float(np.linalg.norm(wanted))
        ensure(
            error < 0.1 * size + 2 * rounding,
            f"the mean of {COHORT.cohort_size} vectors has norm {size:.3g}, and the decoded sum "
            f"lies {error:.3g} off; decode must undo release, in scale and order.",
        )


def check_weight_is_ignored(privatizer: Privatizer) -> str | None:
    """Under a guarantee, a release hides the site's number of examples."""
    private = [trial for trial in privacy_probes(privatizer) if trial.unit is not None]
    if not private:
        return "not needed: nothing is guaranteed"
    for trial in private:
        vector = _direction(0) * 0.01
        one, other = (trial.site(0, 0, 0).release(vector, weight) for weight in (1.0, 1e3))
        ensure(
            np.array_equal(one.words, other.words),
            "a release depends on the weight, which counts the site's own examples and has no "
            "noise of its own; use the declared cohort.examples_per_site.",
        )
    return None


CHECKS: tuple[Check, ...] = (
    check_plan_is_repeatable,
    check_spent,
    check_mechanism,
    check_plan_is_a_value,
    check_refuses_foreign_state,
    check_batches,
    check_batches_are_poisson,
    check_gradient,
    check_release,
    check_refuses_non_finite,
    check_refuses_out_of_range,
    check_round_trip,
    check_weight_is_ignored,
)
"""Every check of a privatizer's bookkeeping."""


def _all() -> ExampleIndices:
    return np.arange(EXAMPLES, dtype=np.int64)


def _direction(seed: int) -> Tensor:
    """Return a unit vector, shape (P,), `float32`."""
    import torch

    drawn: Reals = np.random.default_rng(seed).standard_normal(PARAMETERS)
    return torch.from_numpy((drawn / np.linalg.norm(drawn)).astype(np.float32))


def _scale(trial: PrivacyProbe) -> float:
    """Return a norm that no clipping affects.

    It is half of the norm to which a huge vector is clipped, or 0.1.
    """
    if trial.unit != "site":
        return 0.1
    huge, zero = _direction(0) * 1e6, _direction(0) * 0
    return 0.5 * float(np.linalg.norm(trial.released([huge]) - trial.released([zero])))


def _ensure_mean(trial: PrivacyProbe) -> None:
    import torch

    found = ProbeNetwork().gradient(trial.site(0, 0, 0), _all())
    wanted = ProbeNetwork().gradient(ProbePrivatizer([], fill=None), _all())
    ensure(
        torch.allclose(found, wanted, rtol=1e-3, atol=1e-6),
        "without a guarantee, gradient must be the mean of the batch's gradients; use "
        "cohortium.plugin.mean_gradient.",
    )
