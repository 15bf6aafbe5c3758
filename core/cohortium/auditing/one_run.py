"""Audit of one whole run, with canaries placed by independent coins.

The adversary guesses the coins. A canary is an example (or a patient) whose gradient is a large
multiple of one coordinate's unit vector. The clip scales it down to C. No example is easier to
detect, so only the noise can hide a canary. Auditing by one run: Steinke, Nasr, Jagielski 2023
(arXiv 2305.08846).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np
from attrs import field, frozen

from cohortium import parameters
from cohortium.auditing.bounds import (
    epsilon_bound_of_one_run,
    max_detectable_epsilon_of_one_run,
    p_value_of_one_run,
)
from cohortium.auditing.canaries import HUGE, CanaryDataset, CanaryPrivatizer
from cohortium.auditing.findings import ALPHA, Finding
from cohortium.auditing.harness import InProcessRun, Recording
from cohortium.errors import RequestError, RunError
from cohortium.ring.ring import RingSum
from cohortium.runs.prepare import prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from cohortium.privacy.guarantee import Guarantee
    from cohortium.roles.sessions import RoundPlan, SitePrivatizer
    from cohortium.roles.values import ExampleIndices, SiteId
    from cohortium.runs.prepare import PreparedStudy

    Reals = NDArray[np.float64]

NUMBERS = (25, 50, 100, 200, 500, 1000)
"""Numbers of canaries from which the most powerful one is chosen."""

SHARES = (1.0, 0.25)
"""Shares of the canaries that are guessed, the surest first. They are fixed beforehand."""


@frozen(eq=False, kw_only=True)
class CanaryPlacement:
    """Canaries' coins, coordinates and sites.

    Attributes:
        coins: Whether each canary is there, shape (m,).
        coordinates: Index of each canary's parameter in the network, shape (m,).
        sites: Site of each canary, shape (m,).
    """

    coins: NDArray[np.bool_] = field(repr=False)
    coordinates: ExampleIndices = field(repr=False)
    sites: ExampleIndices = field(repr=False)


def audit_run(
    prepared: PreparedStudy,
    *,
    canaries: int = 0,
    rng: np.random.Generator | None = None,
    tell: Callable[[float], None] = lambda _share: None,
) -> Finding:
    """Train once with canaries, and test the claim by guesses.

    Args:
        prepared: The study.
        canaries: Number of canaries. 0 selects the most powerful number.
        rng: Source of coins and coordinates. The operating system seeds it, unless a test repeats
            itself.
        tell: Receives the share that is done.

    Raises:
        RunError: A round failed.
        RequestError: The network is too small for so many canaries.
    """
    guarantee = prepared.run_config.plan.guarantee
    assert guarantee is not None, "an audit begins with a claim"
    claims = {guarantee.delta: guarantee.epsilon, 1e-5: guarantee.epsilon_at_1e_5}
    if guarantee.unit == "site":
        return _not_run(guarantee, claims, prepared.run_config.federation_spec.sites)
    many = canaries or _most_powerful_count(claims, prepared.parameters)
    if not canaries and _margin(many, claims) <= 0:
        return _not_run(guarantee, claims, many)
    dataset = prepared.federation.dataset
    assert dataset is not None
    planted = prepare(attrs.evolve(prepared.federation, dataset=CanaryDataset(dataset, many)))
    found, scores = _run_with_canaries(planted, many, rng or np.random.default_rng(), tell)
    return _finding(guarantee, claims, found.coins, scores)


def _margin(many: int, claims: Mapping[float, float]) -> float:
    """Return how far perfect guesses could raise the bound.

    It is the largest excess over a claim that `many` canaries can show.
    """
    alpha = ALPHA / (len(SHARES) * len(claims))
    return max(
        max_detectable_epsilon_of_one_run(many, delta=delta, alpha=alpha) - epsilon
        for delta, epsilon in claims.items()
    )


def _most_powerful_count(claims: Mapping[float, float], parameters: int) -> int:
    """Return the number of canaries with which most could be shown."""
    possible = [n for n in NUMBERS if n <= max(parameters, NUMBERS[0])]
    return max(possible, key=lambda many: _margin(many, claims))


def _run_with_canaries(
    prepared: PreparedStudy, many: int, rng: np.random.Generator, tell: Callable[[float], None]
) -> tuple[CanaryPlacement, Reals]:
    """Run all rounds, and return each canary's score.

    The score is the sum of the adversary's observations of the canary's coordinate.
    """
    partition, first = prepared.partition, len(prepared.splits.train) - many
    found = _place_canaries(prepared, many, rng)
    tapes = {site: Recording() for site in range(len(partition))}

    def wrap(site: SiteId) -> Callable[[SitePrivatizer], SitePrivatizer]:
        indices = partition[site]
        is_canary, which = indices >= first, np.maximum(indices - first, 0)
        gradients = np.where(is_canary, np.where(found.coins[which], HUGE, 0.0), np.nan)
        coordinates = found.coordinates[which]
        return lambda privatizer: tapes[site].record(
            CanaryPrivatizer(privatizer, gradients, coordinates)
        )

    examples = {
        site: prepared.splits.train.select(indices) for site, indices in enumerate(partition)
    }
    play = InProcessRun.of(
        prepared, prepared.run_config, examples, {site: wrap(site) for site in tapes}
    )
    scores = np.zeros(many)
    rounds = prepared.run_config.federation_spec.rounds
    for number, (_, contributors, round_plan) in enumerate(play.run_rounds(rounds)):
        scores += _canary_scores(prepared, round_plan, found, tapes, contributors)
        for tape in tapes.values():
            tape.clear()
        play.messages.clear()
        tell((number + 1) / rounds)
    if play.failure is not None:
        raise RunError(f"the run with canaries failed: {play.failure}")
    return found, scores


def _place_canaries(
    prepared: PreparedStudy, many: int, rng: np.random.Generator
) -> CanaryPlacement:
    first = len(prepared.splits.train) - many
    sites = np.zeros(many, dtype=np.int64)
    for site, indices in enumerate(prepared.partition):
        sites[indices[indices >= first] - first] = site
    trainable = sum(p.numel() for p in parameters.trainable(prepared.run_config.network()))
    if many > trainable:
        raise RequestError(
            f"the network has {trainable} numbers, too few for {many} canaries; ask for fewer."
        )
    return CanaryPlacement(
        coins=rng.random(many) < 0.5,  # noqa: PLR2004
        coordinates=rng.choice(trainable, many, replace=False),
        sites=sites,
    )


def _canary_scores(
    prepared: PreparedStudy,
    round_plan: RoundPlan,
    found: CanaryPlacement,
    tapes: Mapping[SiteId, Recording],
    contributors: tuple[SiteId, ...],
) -> Reals:
    """Return the guarantee's adversary's observation of each canary in a round.

    It is the value of the canary's coordinate.
    """
    run_config, guarantee = prepared.run_config, prepared.run_config.plan.guarantee
    assert guarantee is not None
    sign = 1.0 if run_config.workload.output == "gradient" else -1.0
    scores = np.zeros(len(found.coins))
    if guarantee.against == "coordinator":
        words = run_config.plan.ring.zeros(run_config.plan.length)
        for site in contributors:
            words = words + tapes[site].releases[-1].words
        mean = round_plan.decode(RingSum(run_config.plan.ring, words, contributors))
        return sign * mean.double().numpy()[found.coordinates]
    for site in contributors:
        words = tapes[site].releases[-1].words
        own = round_plan.decode(RingSum(run_config.plan.ring, words, (site,))).double().numpy()
        here = found.sites == site
        scores[here] = sign * own[found.coordinates[here]]
    return scores


def _finding(
    guarantee: Guarantee, claims: Mapping[float, float], coins: NDArray[np.bool_], scores: Reals
) -> Finding:
    """Guess "there" for the highest scores and "not there" for the lowest."""
    many = len(coins)
    guesses = {max(2, round(share * many)) // 2 * 2 for share in SHARES}
    tests = [(n, delta, epsilon) for n in guesses for delta, epsilon in claims.items()]
    alpha = ALPHA / len(tests)
    order = np.argsort(scores)
    right = {
        n: int(coins[order[-(n // 2) :]].sum() + (~coins[order[: n // 2]]).sum()) for n in guesses
    }
    margins, refuted = [], False
    for n, delta, epsilon in tests:
        bound = epsilon_bound_of_one_run(right[n], n, many, delta=delta, alpha=alpha)
        margins.append((bound - epsilon, bound, delta, epsilon, n))
        refuted |= p_value_of_one_run(right[n], n, many, epsilon=epsilon, delta=delta) <= alpha
    _, bound, delta, epsilon, n = max(margins)
    most = max_detectable_epsilon_of_one_run(many, delta=delta, alpha=alpha)
    return Finding(
        check="run",
        procedure=(
            f"the whole run once, with {many} canaries, each there by a fair coin, and "
            f"{', '.join(map(str, sorted(guesses)))} guesses"
        ),
        observation=(
            f"{right[n]} of {n} guesses were right: ε ≥ {bound:.3g} at δ = {delta:.3g}, where the "
            f"claim is {epsilon:.3g}."
        ),
        detection_limit=_detection_limit(guarantee.delta, many, most, delta),
        is_refuted=refuted,
        bound=bound,
        max_detectable_epsilon=most,
        claim=epsilon,
    )


def _detection_limit(claimed: float, many: int, most: float, delta: float) -> str:
    """Describe claims that one run cannot refute, even with perfect guesses."""
    best = max(
        max_detectable_epsilon_of_one_run(n, delta=claimed, alpha=0.05)
        for n in (*NUMBERS, 1500, 2000)
    )
    return (
        f"with {many} canaries one run cannot show more than ε = {most:.3g} at δ = {delta:.3g} and "
        f"{1 - ALPHA:.1%} confidence, and at δ = {claimed:.3g} with up to 2,000 canaries and 95 % "
        f"no more than {best:.2g}, in any case."
    )


def _not_run(guarantee: Guarantee, claims: Mapping[float, float], many: int) -> Finding:
    """Return a finding without a test.

    It is for a claim that no outcome could refute.
    """
    alpha = ALPHA / (len(SHARES) * len(claims))
    most, delta = max(
        (max_detectable_epsilon_of_one_run(many, delta=d, alpha=alpha), d) for d in claims
    )
    whose = "its canaries would be the sites; " if guarantee.unit == "site" else ""
    return Finding(
        check="run",
        procedure=f"nothing: {whose}no result of one run could refute such a claim",
        observation="nothing.",
        detection_limit=_detection_limit(guarantee.delta, many, most, delta),
        is_refuted=False,
        max_detectable_epsilon=most,
        claim=claims[delta],
    )
