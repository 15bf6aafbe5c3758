"""The price of a search: exact composition, and refusals before anything is spent."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cohortium import EvaluationPlan, Federation, PriorRelease, Tuning
from cohortium.data.examples import DataSpec
from cohortium.data.multiclass import Multiclass
from cohortium.errors import CohortiumError, PrivacyError, StudyError
from cohortium.privacy import accounting
from cohortium.rounds.build_run_config import to_federation_spec
from cohortium.tuning import TuningPlan, plan_tuning
from cohortium.tuning.costs import largest_epsilon
from cohortium.tuning.settings import GIVEN
from cohortium.tuning.studies import candidate_study, final_study
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from cohortium_none import NoPrivacy
from cohortium_phantom import Phantom
from cohortium_secagg import SecAgg
from cohortium_skellam import Skellam
from tests.support.searches import DELTA, EPSILON, rates, search_of, searched

PUBLIC = {"score": "public"}


def composed_anew(plan: TuningPlan, study: Federation, tuning: Tuning, chosen: str) -> float:
    """ε of all mechanisms, from the privatizers' own plans of every run."""
    spends: list[tuple[accounting.Mechanism, int]] = []
    runs = [candidate_study(tuning, plan, k, "accuracy") for k in range(len(plan.drawn))]
    for each in [*runs, final_study(study, tuning, plan, chosen)]:
        prepared = each.prepare()
        spec = to_federation_spec(each, examples=prepared.run_config.spec.examples)
        inner = each.privatizer.plan(prepared.run_config.workload, spec, prepared.parameters)
        spends += [
            (mechanism, 1)
            for number in range(each.rounds)
            if (mechanism := inner.at_round(number, inner.initial_state).mechanism) is not None
        ]
        spends += [(spends[-1][0], each.retries)] if each.retries else []
    (spent,) = accounting.compose(spends, DELTA)
    return spent.epsilon


@pytest.mark.slow
@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    share=st.floats(0.02, 0.95),
    rounds=st.integers(1, 3),
    values=st.lists(
        st.sampled_from([0.01, 0.02, 0.05, 0.1, 0.4]), min_size=1, max_size=3, unique=True
    ),
    retries=st.integers(0, 2),
)
def test_search_and_run_compose_to_the_study(
    share: float, rounds: int, values: list[float], retries: int
) -> None:
    study = searched(retries=retries, evaluation=None, holdout_fraction=0.0)
    tuning = Tuning(studies=rates(study, *values), rounds=rounds, share=share, score="public")
    plan = plan_tuning(study, tuning)
    (price,) = plan.prices
    assert price.together <= EPSILON
    # The calibration of a run's noise and of its ε is within 0.1 % each.
    assert price.together == pytest.approx(EPSILON, rel=3e-3)
    assert share * EPSILON * (1 - 3e-3) <= price.search <= share * EPSILON
    assert price.search + price.final > price.together
    chosen = plan.drawn[-1]
    assert composed_anew(plan, study, tuning, chosen) == pytest.approx(price.together, abs=1e-6)
    final = final_study(study, tuning, plan, chosen).prepare().run_config.plan.guarantee
    assert final is not None
    assert final.epsilon == pytest.approx(price.together, abs=1e-6)


@pytest.mark.slow
def test_sampled_search_composes_within_the_study() -> None:
    study = searched(trainer=FedSGD(sampling_rate=0.5), evaluation=None, holdout_fraction=0.0)
    tuning = search_of(study, **PUBLIC)
    plan = plan_tuning(study, tuning)
    (price,) = plan.prices
    assert 0.99 * EPSILON < price.together <= EPSILON
    found = composed_anew(plan, study, tuning, plan.drawn[0])
    assert found == pytest.approx(price.together, abs=1e-6)


def test_test_images_have_a_price_of_their_own() -> None:
    study = searched()
    plan = plan_tuning(study, search_of(study, evaluation_share=0.25))
    training, test = plan.prices
    assert (training.images, test.images) == ("training", "test")
    assert 0.98 * 1.0 < test.search <= 1.0
    assert 0.98 * 4.0 < test.together <= 4.0
    alone = plan_tuning(searched(evaluation=None), search_of(searched(evaluation=None)))
    # Without a final evaluation, the candidates have the whole ε of the evaluation.
    assert alone.prices[1].final == 0
    assert 0.98 * EPSILON < alone.prices[1].search <= EPSILON


def test_prior_release_is_counted_with_the_search() -> None:
    prior = PriorRelease(noise_multiplier=2.0)
    study = searched(prior=prior, evaluation=None, holdout_fraction=0.0)
    tuning = search_of(study, **PUBLIC)
    plan = plan_tuning(study, tuning)
    (price,) = plan.prices
    final = final_study(study, tuning, plan, plan.drawn[0]).prepare().run_config.plan.guarantee
    assert final is not None
    assert final.epsilon == pytest.approx(price.together, abs=1e-6)
    assert price.together <= EPSILON
    assert {"[prior]", "[search]"} <= {
        f"[{name}]" for name in ("prior", "search") if f"[{name}]" in " ".join(final.assumptions)
    }


def test_each_candidate_has_its_own_settings() -> None:
    study = searched(evaluation=None, holdout_fraction=0.0)
    tuning = Tuning(studies=rates(study, 0.05, 0.1, 0.4), rounds=1, score="public")
    plan = plan_tuning(study, tuning)
    for number, name in enumerate(plan.drawn):
        each: Any = candidate_study(tuning, plan, number, "accuracy").trainer
        assert f"rate={each.learning_rate:g}" == name
        last: Any = final_study(study, tuning, plan, name).trainer
        assert f"rate={last.learning_rate:g}" == name


@pytest.mark.slow
def test_candidate_guarantee_counts_the_candidates_before_it() -> None:
    study = searched(evaluation=None, holdout_fraction=0.0)
    tuning = Tuning(studies=rates(study, 0.05, 0.1, 0.4), rounds=1, score="public")
    plan = plan_tuning(study, tuning)
    found = []
    for number in range(len(plan.drawn)):
        each = candidate_study(tuning, plan, number, "accuracy")
        guarantee = each.prepare().run_config.plan.guarantee
        assert guarantee is not None
        found.append(guarantee.epsilon)
    assert found == sorted(found)
    assert found[0] < found[1] < found[2] == pytest.approx(plan.prices[0].search, abs=1e-9)


@pytest.mark.slow
def test_studies_of_a_search_survive_their_files(tmp_path: Any) -> None:
    study = searched(
        dataset=Phantom(examples=60, validation=8, test=0),
        holdout_fraction=0.0,
        evaluation=None,
        privatizer=Skellam(epsilon=EPSILON, delta=DELTA),
        aggregator=SecAgg(),
        sites=4,
        min_contributors=4,
        max_colluding=1,
    )
    tuning = search_of(study, **PUBLIC)
    final = final_study(study, tuning, plan_tuning(study, tuning), "rate=0.4")
    (tmp_path / "study.toml").write_text(final.as_toml(), "utf-8")
    assert Federation.read(tmp_path / "study.toml") == final


def test_drawn_candidates_are_a_seeded_subset() -> None:
    study = searched(evaluation=None, holdout_fraction=0.0)
    studies = rates(study, 0.01, 0.05, 0.1)
    tuning = Tuning(studies=studies, rounds=1, score="public", candidates=2)
    plan = plan_tuning(study, tuning)
    assert len({*plan.drawn}) == plan.counted == 2
    assert {*plan.drawn} <= {*studies}
    (price,) = plan.prices
    assert price.together <= EPSILON == pytest.approx(price.together, rel=3e-3)
    final = final_study(study, tuning, plan, plan.drawn[0]).prepare().run_config.plan.guarantee
    assert final is not None
    assert final.epsilon == pytest.approx(price.together, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("number", ["poisson", "negative binomial"])
def test_random_number_bounds_the_final_model(number: str) -> None:
    study = searched(evaluation=None, holdout_fraction=0.0)
    tuning = search_of(study, number=number, candidates=6, shape=0.0, **PUBLIC)
    plan = plan_tuning(study, tuning)
    (price,) = plan.prices
    assert len(plan.drawn) <= plan.counted
    assert plan.counted > 6
    assert {*plan.drawn} <= {*tuning.studies}
    assert price.together <= EPSILON
    assert price.final_model is not None
    assert price.final_model > price.final
    # The number does not show in the noise, and none of the candidates may be drawn.
    again = plan_tuning(study, tuning)
    assert (again.epsilon, again.finals) == (plan.epsilon, plan.finals)
    assert (GIVEN in plan.finals) == (number == "poisson")


def test_many_candidates_cost_who_sees_the_final_model_less() -> None:
    study = searched(evaluation=None, holdout_fraction=0.0)
    # Composition pays for the cap of a heavy tail, and the theorem for its mean.
    tuning = search_of(
        study, number="negative binomial", candidates=40, share=0.9, shape=0.0, **PUBLIC
    )
    (price,) = plan_tuning(study, tuning).prices
    assert price.final_model is not None
    assert price.final_model < price.together


def test_fixed_number_has_no_bound_for_the_final_model() -> None:
    study = searched(evaluation=None, holdout_fraction=0.0)
    (price,) = plan_tuning(study, search_of(study, **PUBLIC)).prices
    assert price.final_model is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"privatizer": NoPrivacy()}, "NoPrivacy has none"),
        ({"evaluation": None, "holdout_fraction": 0.0}, "set federation.holdout_fraction"),
        (
            {"evaluation": EvaluationPlan(privatizer=NoPrivacy())},
            "so nothing of it can be counted",
        ),
    ],
)
def test_study_that_cannot_be_tuned_is_refused(changes: dict[str, Any], told: str) -> None:
    study = searched(**changes)
    with pytest.raises(CohortiumError, match=told):
        plan_tuning(study, search_of(study))


def test_deployment_and_searched_study_are_refused() -> None:
    study = searched()
    spec = DataSpec(channels=1, size=(8, 8), examples=100, task=Multiclass(("a", "b", "c", "d")))
    deployed = attrs.evolve(
        study, data=spec, dataset=None, partitioner=None, evaluation=None, holdout_fraction=0.0
    )
    with pytest.raises(StudyError, match="hospitals of a deployment accept single runs"):
        plan_tuning(deployed, search_of(study))
    tuning = search_of(study)
    final = final_study(study, tuning, plan_tuning(study, tuning), "rate=0.4")
    with pytest.raises(StudyError, match=r"from a search already; take \[search\] out"):
        plan_tuning(final, search_of(final))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"privatizer": Gaussian(epsilon=5.0, delta=DELTA)}, r"privatizer.epsilon = 5.0"),
        ({"privatizer": Gaussian(epsilon=EPSILON, delta=DELTA, unit="site")}, "privatizer.unit"),
        ({"seed": 7}, "federation.seed = 7"),
    ],
)
def test_candidate_with_another_budget_is_refused(changes: dict[str, Any], told: str) -> None:
    study = searched()
    tuning = Tuning(studies={"odd": attrs.evolve(study, **changes)}, rounds=1)
    with pytest.raises(StudyError, match=f"candidate odd has {told}"):
        plan_tuning(study, tuning)


@pytest.mark.slow
def test_choice_without_a_proven_bound_is_refused() -> None:
    study = searched(evaluation=None, holdout_fraction=0.0)
    trainers = {f"q={q:g}": FedSGD(sampling_rate=q) for q in (0.3, 0.6)}
    sampled = {name: attrs.evolve(study, trainer=each) for name, each in trainers.items()}
    with pytest.raises(PrivacyError, match="has no proven bound here"):
        plan_tuning(study, Tuning(studies=sampled, rounds=1, score="public"))
    # Gaussian noise without sampling is in order, whatever the numbers of rounds.
    lengths = {f"rounds={n}": attrs.evolve(study, rounds=n) for n in (2, 5)}
    plan = plan_tuning(study, Tuning(studies=lengths, rounds=1, score="public"))
    assert plan.prices[0].together <= EPSILON


def test_search_beyond_any_noise_is_refused() -> None:
    def together(epsilon: float) -> float:
        return 2.0 + epsilon

    with pytest.raises(PrivacyError, match="the final run cannot be paid for: it has no ε left"):
        largest_epsilon(together, 1.0, what="the final run")
    assert largest_epsilon(lambda e: 3 * e, 1.0, what="") == pytest.approx(1 / 3, rel=1e-3)
    assert largest_epsilon(lambda e: e, 1.0, what="") == 1.0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"studies": {}}, "name at least one"),
        ({"candidates": 3}, "candidates = 3 is more than the 2 combinations"),
        ({"studies": {"a/b": None}}, "'a/b' cannot name a candidate"),
        ({"studies": {GIVEN: None}}, "no candidate can be called 'given'"),
    ],
)
def test_impossible_search_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(StudyError, match=told):
        search_of(searched(), **changes)


def test_share_beyond_its_range_is_refused() -> None:
    for share in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="share"):
            search_of(searched(), share=share)
