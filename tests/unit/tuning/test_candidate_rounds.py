"""The length of a candidate: as much noise in its weights as in those of the final run."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium import Federation, Tuning
from cohortium.errors import PrivacyError
from cohortium.privacy.accounting import GaussianMechanism, RenyiBoundedMechanism
from cohortium.privacy.mechanisms import ORDERS
from cohortium.tuning import plan_tuning
from cohortium.tuning.candidate_rounds import divergence, equal_noise_rounds, shorten
from cohortium.tuning.studies import candidate_study, final_study
from cohortium_fedsgd import FedSGD
from cohortium_secagg import SecAgg
from cohortium_skellam import Skellam
from tests.support.searches import DELTA, EPSILON, rates, searched


def study_of(rounds: int, statistics: int = 0, **trainer: Any) -> Federation:
    """A study without an evaluation, whose trainer has `statistics` statistics rounds."""
    return searched(
        rounds=rounds,
        trainer=FedSGD(sampling_rate=1.0, statistics_rounds=statistics, **trainer),
        evaluation=None,
        holdout_fraction=0.0,
    )


def variance(rounds: int, statistics: int, momentum: float) -> float:
    """Mean variance of weights under noise of variance `rounds`, by the steps of momentum SGD.

    The rate falls linearly to 0 over the rounds after the statistics rounds.
    """
    steps = rounds - statistics
    squares = 0.0
    for noised in range(steps):
        weight = velocity = 0.0
        for now in range(steps):
            velocity = momentum * velocity + (now == noised)
            weight += (1 - now / steps) * velocity
            squares += weight**2
    return rounds * squares / steps


@settings(max_examples=8, deadline=None)
@given(
    rounds=st.integers(2, 10),
    price=st.floats(1e-3, 1.0),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
)
def test_length_is_the_largest_with_allowed_noise(
    rounds: int, price: float, momentum: float
) -> None:
    study = study_of(rounds, optimizer_options={"momentum": momentum})
    allowed = price * variance(rounds, 0, momentum)
    found = equal_noise_rounds(study, limit=rounds, price=price)
    # A response has four digits.
    assert found == 1 or variance(found, 0, momentum) <= allowed * 1.002
    assert found == rounds or variance(found + 1, 0, momentum) > allowed * 0.998


def test_length_of_best_toml_by_hand() -> None:
    # A sixth of ε = 1.2 is 0.105 of ε = 6 in standard deviations, and twelve of 60 rounds are for
    # statistics.
    allowed = 0.105**2 * variance(60, 12, 0.9)
    assert variance(13, 3, 0.9) <= allowed < variance(14, 3, 0.9)
    assert equal_noise_rounds(study_of(60, 12), limit=60, price=0.105**2) == 13


@pytest.mark.parametrize(
    ("changes", "price", "length"),
    [
        ({}, 1.0, 40),
        ({}, 1e-12, 1),
        ({"statistics": 8}, 1e-12, 2),
        # The response of Adam depends on the gradients, so each one counts once.
        ({"optimizer": "adam"}, 0.25, 20),
        # Nothing but statistics, as `moments` has.
        ({"statistics": 40}, 0.0625, 10),
    ],
)
def test_length_at_the_ends_is_possible(changes: dict[str, Any], price: float, length: int) -> None:
    assert equal_noise_rounds(study_of(40, **changes), limit=40, price=price) == length


def test_shortened_study_keeps_its_share_of_statistics() -> None:
    study = study_of(60, 12)
    for rounds, statistics in ((60, 12), (30, 6), (13, 3), (2, 1)):
        short = shorten(study, rounds)
        assert (short.rounds, getattr(short.trainer, "statistics_rounds")) == (rounds, statistics)  # noqa: B009
    assert shorten(study_of(60), 13).trainer == study_of(60).trainer


def test_divergence_without_a_bound_is_refused() -> None:
    assert divergence([(GaussianMechanism(noise_multiplier=2.0), 3)]) == pytest.approx(3 / 4)
    open_ended = RenyiBoundedMechanism(name="any", bounds=(math.inf,) * len(ORDERS))
    with pytest.raises(PrivacyError, match="set rounds"):
        divergence([(open_ended, 1)])


def test_search_without_rounds_shortens_its_candidates() -> None:
    study = study_of(8)
    tuning = Tuning(studies=rates(study, 0.05, 0.4), score="public")
    plan = plan_tuning(study, tuning)
    assert 1 < plan.rounds < 8
    assert plan.prices[0].together <= EPSILON
    assert {candidate_study(tuning, plan, k, "accuracy").rounds for k in (0, 1)} == {plan.rounds}
    assert final_study(study, tuning, plan, "rate=0.4").rounds == 8


def test_candidates_are_no_longer_than_their_final_runs() -> None:
    study = study_of(8)
    studies = {"given": 8, "brief": 2}
    tuning = Tuning(
        studies={f"{n} rounds": attrs.evolve(study, rounds=n) for n in studies.values()},
        score="public",
        share=0.9,
    )
    assert plan_tuning(study, tuning).rounds == 2


def test_skellam_search_has_a_length() -> None:
    study = attrs.evolve(
        study_of(6),
        privatizer=Skellam(epsilon=EPSILON, delta=DELTA),
        aggregator=SecAgg(),
        sites=4,
        min_contributors=4,
        max_colluding=1,
    )
    plan = plan_tuning(study, Tuning(studies=rates(study, 0.05), score="public", share=0.5))
    assert 1 < plan.rounds < 6
