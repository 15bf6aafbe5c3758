"""Plan of a search: its candidates and its noise, priced before the first round."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from typing import TYPE_CHECKING

import attrs
import numpy as np
from attrs import define, field, frozen

from cohortium.crypto.randomness import Seeds
from cohortium.errors import CohortiumError, PrivacyError, StudyError
from cohortium.learning.evaluation import torch_threads
from cohortium.privacy.accounting import GaussianMechanism, RenyiBoundedMechanism
from cohortium.rounds.build_run_config import run_randomness
from cohortium.rounds.plan_with_prior import earlier_releases
from cohortium.runs.evaluate import prepare_evaluation
from cohortium.runs.prepare import prepare
from cohortium.study.search import SearchCost
from cohortium.tuning.prices import FinalSettings, Price, TuningPlan
from cohortium.tuning.pricing import (
    PricedStudy,
    Pricer,
    composed,
    has_epsilon,
    largest_epsilon,
    spends_of,
)
from cohortium.tuning.settings import GIVEN
from cohortium.tuning.studies import require_tunable, shortened

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cohortium.data.splits import Splits
    from cohortium.federation import Federation
    from cohortium.ledger.cost import AttemptCost
    from cohortium.privacy.accounting import Mechanism
    from cohortium.privacy.candidate_number import CandidateNumber
    from cohortium.roles.protocols import Privatizer
    from cohortium.tuning.settings import Tuning

TAIL = 1e-3
"""Part of δ that may go to the numbers of candidates beyond the cap."""


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
    splits = federation.dataset.load()
    scored_on = _scored_on(tuning, splits)
    with torch_threads(federation.threads):
        prepared = _Prepared.of(federation, tuning, splits)
    training = _TrainingImages.of(prepared, tuning, number)
    drawn, counted = _draw(federation, tuning, number, training.tail)
    found = training.priced(drawn, counted)
    tested = None
    if tuning.score == "sites":
        with torch_threads(federation.threads):
            tests = _TestImages.of(federation, tuning, prepared, number)
        tested = tests.priced(drawn, counted)
    return TuningPlan(
        digest=search_digest(federation, tuning, splits),
        score=tuning.score,
        scored_on=scored_on,
        number=tuning.number,
        rounds=tuning.rounds,
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


def main_part(splits: Splits) -> str:
    """Return the part of the task's scores that has the main score."""
    return splits.task.score_parts[0]


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


@frozen(eq=False, kw_only=True)
class _Prepared:
    """Every study of a search, prepared.

    Attributes:
        short: Relevant part of each candidate.
        long: Relevant part of each possible final run.
        short_tests: Relevant part of each candidate's evaluation.
        long_tests: Relevant part of each final evaluation.
        prior: Releases that the study's `[prior]` declares.
        warnings: Warnings of the preparation.
    """

    short: Mapping[str, PricedStudy]
    long: Mapping[str, PricedStudy]
    short_tests: Mapping[str, PricedStudy]
    long_tests: Mapping[str, PricedStudy]
    prior: Sequence[tuple[Mechanism, int]]
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, federation: Federation, tuning: Tuning, splits: Splits) -> _Prepared:
        """Prepare every candidate and every possible final run."""
        short, long, short_tests, long_tests = {}, {}, {}, {}
        told: list[str] = []
        finals = dict(tuning.studies)
        if tuning.number == "poisson":
            finals[GIVEN] = federation
        # Equal evaluations are tried once.
        tried: dict[str, PricedStudy] = {}

        def tested(study: Federation, name: str, *, is_final: bool) -> PricedStudy:
            plan = study.evaluation
            assert plan is not None, "the caller has checked that"
            key = repr((study.privatizer, plan, study.model, study.rounds if is_final else 0))
            if key not in tried:
                found = prepare_evaluation(study, plan, ready)
                if found.shared:
                    told.append(
                        f"{found.shared} too; for these, ε of training and test images hold "
                        "together only."
                    )
                _require_guarantee(found.run_config.plan.guarantee, name)
                tried[key] = PricedStudy.of(found)
            return tried[key]

        for name, study in finals.items():
            try:
                ready = prepare(study, loaded=splits)
                _require_guarantee(ready.run_config.plan.guarantee, name)
                long[name] = PricedStudy.of(ready)
                if tuning.score == "sites" and study.evaluation is not None:
                    long_tests[name] = tested(study, name, is_final=True)
                if name == GIVEN:
                    continue
                brief = shortened(study, tuning, main_part(splits))
                ready = prepare(brief, loaded=splits)
                short[name] = PricedStudy.of(ready)
                if brief.evaluation is not None:
                    short_tests[name] = tested(brief, name, is_final=False)
            except CohortiumError as error:
                raise type(error)(f"candidate {name}: {error}") from error
        return cls(
            short=short,
            long=long,
            short_tests=short_tests,
            long_tests=long_tests,
            prior=[each for found in earlier_releases(federation) for each in found.spends],
            warnings=tuple(dict.fromkeys(told)),
        )


def _require_guarantee(guarantee: object, name: str) -> None:
    if guarantee is None:
        raise StudyError(f"candidate {name} has no guarantee, so nothing of it can be counted.")


@frozen(eq=False, kw_only=True)
class _Priced:
    """Price of a search for one kind of images.

    Attributes:
        epsilon: ε of each candidate.
        costs: Cost of one run of each candidate.
        counted: Cost of all counted candidates.
        finals: ε of each possible final run.
        price: ε of everything.
    """

    epsilon: float
    costs: Mapping[str, SearchCost]
    counted: SearchCost
    finals: Mapping[str, float]
    price: Price


@define(eq=False, kw_only=True)
class _Images:
    """Pricing of a search for one kind of images.

    Attributes:
        images: "training" or "test".
        short: Relevant part of each candidate.
        long: Relevant part of each possible final run, perhaps of none.
        prior: Earlier releases of these images.
        target: ε of everything.
        share: Share of it that the candidates may cost.
        delta: δ.
        number: Distribution of the number of candidates.
    """

    images: str
    short: Mapping[str, PricedStudy]
    long: Mapping[str, PricedStudy]
    prior: Sequence[tuple[Mechanism, int]]
    target: float
    share: float
    delta: float
    number: CandidateNumber
    _pricer: Pricer = field(factory=Pricer, init=False)

    @property
    def tail(self) -> float:
        """Probability of a number of candidates beyond the cap that costs little of δ."""
        return TAIL * self.delta / (1 + math.exp(self.target))

    def priced(self, drawn: Sequence[str], counted: int) -> _Priced:
        """Return the price of the drawn candidates, and of any final run.

        Args:
            drawn: Names of the candidates to run.
            counted: Number of them that counts.

        Raises:
            PrivacyError: It cannot be paid for, or has no proven bound.
        """
        is_fixed = self.number.distribution == "fixed"

        def search(epsilon: float) -> Counter[AttemptCost]:
            """Return the costs of all counted candidates."""
            total: Counter[AttemptCost] = Counter()
            if is_fixed:
                for name in drawn:
                    total += self._pricer.costs(self.short[name], epsilon)
                return total
            for cost, times in self._one_cost(epsilon).items():
                total[cost] = times * counted
            return total

        limit = self.share * self.target
        epsilon = largest_epsilon(
            lambda e: composed(spends_of(search(e)), self.delta),
            limit,
            what=f"the search ({self.images} images)",
        )
        costs = search(epsilon)
        before = [*self.prior, *spends_of(costs)]
        finals = {name: self._final_epsilon(name, before) for name in self.long}
        final_costs = {
            name: self._pricer.costs(study, finals[name]) for name, study in self.long.items()
        }
        self._require_ordered(final_costs)
        ends = [spends_of(each) for each in final_costs.values()] or [[]]
        one = next(iter(costs))
        terms = {(c.unit, c.adjacency, c.against, c.simulation) for c in costs}
        terms |= {
            (c.unit, c.adjacency, c.against, c.simulation)
            for each in final_costs.values()
            for c in each
        }
        if len(terms) != 1:
            raise PrivacyError(
                "the candidates protect different units, or against different adversaries, so "
                "their costs do not add up; let them agree in these."
            )
        price = Price(
            images=self.images,
            delta=self.delta,
            search=composed(spends_of(costs), self.delta),
            final=max(composed(end, self.delta) for end in ends),
            together=max(composed([*before, *end], self.delta) for end in ends),
            final_model=self._final_model(epsilon, ends),
            unit=one.unit,
            adjacency=one.adjacency,
            against=one.against,
            simulation=one.simulation,
        )
        assert price.together <= self.target, "the final run has what the search has left"
        single = {
            name: SearchCost.of(self._pricer.costs(study, epsilon))
            for name, study in self.short.items()
        }
        return _Priced(
            epsilon=epsilon,
            costs=single,
            counted=SearchCost.of(costs),
            finals=finals,
            price=price,
        )

    def _final_epsilon(self, name: str, before: Sequence[tuple[Mechanism, int]]) -> float:
        study = self.long[name]

        def together(epsilon: float) -> float:
            costs = self._pricer.costs(study, epsilon)
            return composed([*before, *spends_of(costs)], self.delta)

        return largest_epsilon(together, self.target, what=f"the final run ({name})")

    def _one_cost(self, epsilon: float) -> Counter[AttemptCost]:
        """Return the cost that a random candidate has, whichever it is.

        Raises:
            PrivacyError: Candidates differ in it.
        """
        costs = [self._pricer.costs(study, epsilon) for study in self.short.values()]
        if any(each != costs[0] for each in costs):
            raise PrivacyError(
                "a random number of candidates is counted for candidates with equal noise, and "
                'these differ in what determines it; use number = "fixed".'
            )
        return costs[0]

    def _require_ordered(self, costs: Mapping[str, Counter[AttemptCost]]) -> None:
        """Refuse final runs whose choice by private scores has no proven bound.

        The choice among final runs depends on released scores.  If all have one mechanism, it does
        not change the composition.  Gaussian releases without sampling are in an order: each can be
        computed from the one with the least noise (Dong et al. 2022).  So the worst of them bounds
        the choice.
        """
        found = list(costs.values())
        if all(each == found[0] for each in found[1:]):
            return
        mechanisms = [cost.mechanism for each in found for cost in each]
        if not all(isinstance(m, GaussianMechanism) and m.sampling_rate == 1 for m in mechanisms):
            raise PrivacyError(
                "the candidates' final runs differ in sampling or in the form of their noise, and "
                "the choice among those has no proven bound here; leave the sampling rate, the "
                "rounds and the privatizer's noise equal, or take sampling_rate = 1."
            )

    def _final_model(
        self, epsilon: float, ends: Sequence[Sequence[tuple[Mechanism, int]]]
    ) -> float | None:
        """Return ε against a party that sees the final model alone, or None without a bound."""
        if self.number.distribution == "fixed":
            return None
        one = self._one_cost(epsilon)
        curve = sum(
            cost.mechanism.rdp_curve * times
            for cost, times in one.items()
            if cost.mechanism is not None
        )
        selected = self.number.selected_curve(np.asarray(curve))
        assert selected is not None, "the number is random"
        best = RenyiBoundedMechanism(name="best candidate", bounds=tuple(map(float, selected)))
        # The rest of δ is for numbers beyond the cap.
        left = self.delta * (1 - TAIL)
        found = max(composed([*self.prior, (best, 1), *end], left) for end in ends)
        # The cap is sized for an ε within the target, and composition is better beyond it.
        return found if found <= self.target else math.inf


class _TrainingImages(_Images):
    """Pricing for the training images."""

    @classmethod
    def of(cls, prepared: _Prepared, tuning: Tuning, number: CandidateNumber) -> _TrainingImages:
        """Return the pricing of a prepared search."""
        some = next(iter(prepared.long.values()))
        epsilon, delta = _budget(some.privatizer)
        return cls(
            images="training",
            short=prepared.short,
            long=prepared.long,
            prior=prepared.prior,
            target=epsilon,
            share=tuning.share,
            delta=delta,
            number=number,
        )


class _TestImages(_Images):
    """Pricing for the sites' test images."""

    @classmethod
    def of(
        cls,
        federation: Federation,
        tuning: Tuning,
        prepared: _Prepared,
        number: CandidateNumber,
    ) -> _TestImages:
        """Return the pricing of a prepared search with private evaluations."""
        some = next(iter(prepared.short_tests.values()))
        if not has_epsilon(some.privatizer):
            raise StudyError(
                "the evaluation of the candidates needs a privatizer with an ε; name one under "
                "[evaluation.privatizer]."
            )
        epsilon, delta = _budget(some.privatizer)
        return cls(
            images="test",
            short=prepared.short_tests,
            long=prepared.long_tests,
            prior=(),
            target=epsilon,
            share=1.0 if federation.evaluation is None else tuning.evaluation_share,
            delta=delta,
            number=number,
        )


def _budget(privatizer: Privatizer) -> tuple[float, float]:
    """Return ε and δ of a privatizer.

    Raises:
        StudyError: It has no δ.
    """
    delta = getattr(privatizer, "delta", None)
    if not isinstance(delta, float):
        raise StudyError("a search needs a privatizer with an ε and a δ, such as 'gaussian'.")
    return float(privatizer.epsilon), delta  # type: ignore[attr-defined]


def _draw(
    federation: Federation, tuning: Tuning, number: CandidateNumber, tail: float
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
    most = number.cap(tail)
    count = number.draw(float(stream.uniform(1)[0]), most)
    return tuple(names[stream.below(len(names))] for _ in range(count)), most
