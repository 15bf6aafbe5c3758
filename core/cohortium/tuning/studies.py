"""The studies that a search runs: its candidates, and the final one."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import attrs

from cohortium.errors import StudyError
from cohortium.study.measurement import EvaluationPlan
from cohortium.study.search import CountedReleases, Search, SearchCost
from cohortium.tuning.candidate_rounds import shorten
from cohortium.tuning.costs import has_epsilon, with_epsilon
from cohortium.tuning.settings import GIVEN

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cohortium.data.splits import Splits
    from cohortium.federation import Federation
    from cohortium.privacy.mechanisms import Mechanism
    from cohortium.study.study import Study
    from cohortium.tuning.prices import TuningPlan
    from cohortium.tuning.settings import Tuning


def candidate_evaluation(study: Study, part: str) -> EvaluationPlan:
    """Return the evaluation that scores a candidate: one release of the main score.

    Args:
        study: The study that is tuned.
        part: The part of the task's scores that has the main score.
    """
    plan = study.evaluation or EvaluationPlan()
    return attrs.evolve(plan, every=0, parts=(part,), by=())


def unpriced_candidate(study: Federation, tuning: Tuning, part: str, rounds: int) -> Federation:
    """Return the study of a candidate of `rounds`, before its ε is known."""
    is_public = tuning.score == "public"
    return attrs.evolve(
        study if tuning.rounds else shorten(study, rounds),
        rounds=rounds,
        # Scored after the last round alone.
        evaluate_every=rounds if is_public else 0,
        evaluation=None if is_public else candidate_evaluation(study, part),
        observers=(),
    )


def candidate_study(tuning: Tuning, plan: TuningPlan, number: int, part: str) -> Federation:
    """Return the study of the candidate that is run as `number`, from 0.

    It has the settings of that candidate.  Its guarantee counts the candidates before it.
    """
    before = plan.drawn[:number]
    short = unpriced_candidate(tuning.studies[plan.drawn[number]], tuning, part, plan.rounds)
    evaluation = short.evaluation
    if evaluation is not None:
        evaluation = attrs.evolve(evaluation, epsilon=plan.evaluation_epsilon)
    return attrs.evolve(
        short,
        privatizer=with_epsilon(short.privatizer, plan.epsilon),
        evaluation=evaluation,
        search=Search(
            candidates=number,
            rounds=plan.rounds,
            scored_by=plan.score,
            training=summed(plan.training, before),
            evaluation=summed(plan.evaluation, before) if plan.evaluation else None,
        ),
    )


def final_study(
    federation: Federation, tuning: Tuning, plan: TuningPlan, chosen: str
) -> Federation:
    """Return the study of the final run with the chosen settings.

    Its guarantee counts the whole search.
    """
    study = federation if chosen == GIVEN else tuning.studies[chosen]
    budget, evaluation = plan.finals[chosen], study.evaluation
    if evaluation is not None and budget.evaluation_epsilon is not None:
        evaluation = attrs.evolve(evaluation, epsilon=budget.evaluation_epsilon)
    return attrs.evolve(
        study,
        privatizer=with_epsilon(study.privatizer, budget.epsilon),
        evaluation=evaluation,
        search=Search(
            candidates=plan.counted,
            rounds=plan.rounds,
            scored_by=plan.score,
            chosen=chosen,
            training=plan.counted_training,
            evaluation=plan.counted_evaluation,
        ),
    )


def summed(costs: Mapping[str, SearchCost], names: Iterable[str]) -> SearchCost:
    """Return the cost of the runs of several candidates, perhaps of none."""
    counts: Counter[Mechanism] = Counter()
    for name in names:
        for each in costs[name].releases:
            counts[each.mechanism] += each.times
    releases = tuple(CountedReleases(mechanism=m, times=n) for m, n in counts.items())
    return attrs.evolve(next(iter(costs.values())), releases=releases)


def require_tunable(federation: Federation, tuning: Tuning) -> None:
    """Refuse a study that cannot be tuned, or candidates with other budgets.

    Raises:
        StudyError: The reason.
    """
    if federation.data is not None:
        raise StudyError(
            "a search runs in a simulation: hospitals of a deployment accept single runs; tune on "
            "public or made-up images, and deploy the chosen settings."
        )
    if federation.search is not None:
        raise StudyError(
            "the settings of this study come from a search already; take [search] out."
        )
    if not has_epsilon(federation.privatizer):
        kind = type(federation.privatizer).__name__
        raise StudyError(
            f"a search needs a privatizer with an ε to share, and {kind} has none; choose "
            "'gaussian', or search with `cohortium run` and a [grid]."
        )
    ours = _terms(federation)
    for name, study in tuning.studies.items():
        theirs = _terms(study)
        for term, value in ours.items():
            if theirs[term] != value:
                raise StudyError(
                    f"candidate {name} has {term} = {theirs[term]!r}, and the study {value!r}; all "
                    "candidates share the study's budget, its data and its sites."
                )


def _terms(study: Federation) -> dict[str, object]:
    """Return the terms in which all candidates agree."""
    names = ("epsilon", "delta", "unit", "adjacency", "noise")
    found: dict[str, object] = {
        f"privatizer.{name}": getattr(study.privatizer, name, None) for name in names
    }
    kept = (
        "dataset", "partitioner", "evaluation", "prior", "sites", "seed", "max_colluding",
        "insecure_seeded_secrets", "holdout_fraction", "data",
    )  # fmt: skip
    return found | {f"federation.{name}": getattr(study, name) for name in kept}


def main_part(splits: Splits) -> str:
    """Return the part of the task's scores that has the main score."""
    return splits.task.score_parts[0]
