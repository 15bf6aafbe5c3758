"""Plan of a search: its candidates and its noise, priced before the first round."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import attrs

from cohortium.catalog.part_results import load_splits
from cohortium.crypto.randomness import Seeds
from cohortium.errors import StudyError
from cohortium.learning.evaluation import torch_threads
from cohortium.rounds.build_run_config import run_randomness
from cohortium.tuning.candidate_rounds import equal_noise_rounds
from cohortium.tuning.prepared_search import PreparedSearch
from cohortium.tuning.prices import FinalSettings, TuningPlan
from cohortium.tuning.search_pricing import TestPricing, TrainingPricing, number_tail
from cohortium.tuning.studies import main_part, require_tunable

if TYPE_CHECKING:
    from cohortium.data.splits import Splits
    from cohortium.federation import Federation
    from cohortium.privacy.candidate_number import CandidateNumber
    from cohortium.tuning.settings import Tuning


def plan_tuning(federation: Federation, tuning: Tuning) -> TuningPlan:
    """Plan and price a search, and refuse all that can be refused.

    Nothing is trained.  Each candidate and each possible final run is prepared.

    Args:
        federation: The study, whose ε covers search and final run.
        tuning: The search.

    Guarantees:
        The composition of all counted candidates and of any final run is within the study's ε at
        its δ.  The same holds for the evaluations and the ε of `[evaluation]`.
        The candidates, their number, their noise and that of the final run do not depend on data.

    Raises:
        CohortiumError: The search cannot be run, or not be paid for.
    """
    require_tunable(federation, tuning)
    number = tuning.random_number
    assert federation.dataset is not None, "a simulation has data"
    splits = load_splits(federation.dataset)
    scored_on = _scored_on(tuning, splits)
    drawn, counted = _draw(federation, tuning, number)
    with torch_threads(federation.threads):
        rounds = tuning.rounds or _equal_noise_rounds(federation, tuning, splits, counted)
        prepared = PreparedSearch.of(federation, tuning, splits, rounds)
    training = TrainingPricing.of(prepared, tuning, number)
    found = training.priced(drawn, counted)
    tested = None
    if tuning.score == "sites":
        with torch_threads(federation.threads):
            tests = TestPricing.of(federation, tuning, prepared, number)
        tested = tests.priced(drawn, counted)
    return TuningPlan(
        digest=search_digest(federation, tuning, splits),
        score=tuning.score,
        scored_on=scored_on,
        number=tuning.number,
        rounds=rounds,
        drawn=drawn,
        counted=counted,
        epsilon=found.epsilon,
        evaluation_epsilon=None if tested is None else tested.epsilon,
        training=found.costs,
        evaluation={} if tested is None else tested.costs,
        counted_training=found.counted,
        counted_evaluation=None if tested is None else tested.counted,
        finals={
            name: FinalSettings(
                epsilon=epsilon,
                evaluation_epsilon=None if tested is None else tested.finals.get(name),
            )
            for name, epsilon in found.finals.items()
        },
        prices=(found.price, *(() if tested is None else (tested.price,))),
        warnings=prepared.warnings,
    )


def search_digest(federation: Federation, tuning: Tuning, splits: Splits) -> str:
    """Return the SHA-256 of a search: study, candidates, settings and data."""
    parts = [attrs.evolve(federation, observers=()).as_toml(), repr(sorted(tuning.terms.items()))]
    for name, study in tuning.studies.items():
        parts += [name, attrs.evolve(study, observers=()).as_toml()]
    parts.append(splits.train.fingerprint.hex())
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def _scored_on(tuning: Tuning, splits: Splits) -> str:
    """Return the images that score the candidates, as a text."""
    if tuning.score == "sites":
        return (
            f"a private evaluation of each candidate ({main_part(splits)}) on the sites' own test "
            "images"
        )
    images = 0 if splits.validation is None else len(splits.validation)
    if not images:
        raise StudyError(
            f"the data set {splits.name} has no public validation images to score candidates by; "
            'use score = "sites".'
        )
    return (
        f"{images:,} validation images that the data set {splits.name} declares to be public; no "
        "ε covers them"
    )


def _equal_noise_rounds(
    federation: Federation, tuning: Tuning, splits: Splits, counted: int
) -> int:
    """Return the rounds of a candidate, by the study's own settings."""
    candidate, final = TrainingPricing.alone(federation, tuning, splits).divergences(counted)
    limit = min(each.rounds for each in tuning.studies.values())
    return equal_noise_rounds(federation, limit=limit, price=candidate / final)


def _draw(
    federation: Federation, tuning: Tuning, number: CandidateNumber
) -> tuple[tuple[str, ...], int]:
    """Return the names of the candidates to run, and the number that counts.

    A fixed number is drawn from the public seed.  A random number, and the candidates then, are
    secrets, which come from the operating system unless the study seeds its secrets.
    """
    names = tuple(tuning.studies)
    if number.distribution == "fixed":
        if not tuning.candidates:
            return names, len(names)
        rng = Seeds(federation.seed).generator("tuning")
        places = sorted(rng.choice(len(names), tuning.candidates, replace=False).tolist())
        return tuple(names[place] for place in places), len(places)
    stream = run_randomness(federation).stream("tuning")
    most = number.cap(number_tail(federation.privatizer))
    count = number.draw(float(stream.uniform(1)[0]), most)
    return tuple(names[stream.below(len(names))] for _ in range(count)), most
