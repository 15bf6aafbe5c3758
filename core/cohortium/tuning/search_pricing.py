"""Price of a search for one kind of images."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
from attrs import define, field, frozen

from cohortium.errors import PrivacyError, StudyError
from cohortium.privacy.accounting import GaussianMechanism, RenyiBoundedMechanism
from cohortium.rounds.plan_with_prior import earlier_releases
from cohortium.runs.prepare import prepare
from cohortium.study.search import SearchCost
from cohortium.tuning.candidate_rounds import divergence
from cohortium.tuning.costs import (
    PricedStudy,
    Pricer,
    composed,
    has_epsilon,
    largest_epsilon,
    spends_of,
)
from cohortium.tuning.prices import Price
from cohortium.tuning.settings import GIVEN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cohortium.data.splits import Splits
    from cohortium.federation import Federation
    from cohortium.ledger.cost import AttemptCost
    from cohortium.privacy.accounting import Mechanism
    from cohortium.privacy.candidate_number import CandidateNumber
    from cohortium.roles.protocols import Privatizer
    from cohortium.tuning.prepared_search import PreparedSearch
    from cohortium.tuning.settings import Tuning

TAIL = 1e-3
"""Part of δ that may go to the numbers of candidates beyond the cap."""


@frozen(eq=False, kw_only=True)
class _PricedSearch:
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
class _Pricing:
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

    def priced(self, drawn: Sequence[str], counted: int) -> _PricedSearch:
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
        terms = {
            (c.unit, c.adjacency, c.against, c.simulation)
            for each in (costs, *final_costs.values())
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
        return _PricedSearch(
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


class TrainingPricing(_Pricing):
    """Pricing for the training images."""

    @classmethod
    def of(
        cls, prepared: PreparedSearch, tuning: Tuning, number: CandidateNumber
    ) -> TrainingPricing:
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

    @classmethod
    def alone(cls, federation: Federation, tuning: Tuning, splits: Splits) -> TrainingPricing:
        """Return the pricing of a search whose candidates are all the study itself."""
        own = {GIVEN: PricedStudy.of(prepare(federation, loaded=splits))}
        epsilon, delta = _budget(federation.privatizer)
        return cls(
            images="training",
            short=own,
            long=own,
            prior=[each for found in earlier_releases(federation) for each in found.spends],
            target=epsilon,
            share=tuning.share,
            delta=delta,
            number=tuning.random_number,
        )

    def divergences(self, counted: int) -> tuple[float, float]:
        """Return the divergence of one of `counted` equal candidates, and of the final run."""
        ((name, final),) = self.long.items()
        found = self.priced([name] * counted, counted)
        spends = spends_of(self._pricer.costs(final, found.finals[name]))
        return divergence(found.costs[name].spends), divergence(spends)


def number_tail(privatizer: Privatizer) -> float:
    """Return the probability of a number of candidates beyond the cap that costs little of δ."""
    epsilon, delta = _budget(privatizer)
    return TAIL * delta / (1 + math.exp(epsilon))


class TestPricing(_Pricing):
    """Pricing for the sites' test images."""

    @classmethod
    def of(
        cls,
        federation: Federation,
        tuning: Tuning,
        prepared: PreparedSearch,
        number: CandidateNumber,
    ) -> TestPricing:
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
