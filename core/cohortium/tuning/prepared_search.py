"""Preparation of every study of a search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from cohortium.errors import CohortiumError, StudyError
from cohortium.rounds.plan_with_prior import earlier_releases
from cohortium.runs.evaluate import prepare_evaluation
from cohortium.runs.prepare import prepare
from cohortium.tuning.costs import PricedStudy
from cohortium.tuning.settings import GIVEN
from cohortium.tuning.studies import main_part, unpriced_candidate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cohortium.data.splits import Splits
    from cohortium.federation import Federation
    from cohortium.privacy.accounting import Mechanism
    from cohortium.tuning.settings import Tuning


@frozen(eq=False, kw_only=True)
class PreparedSearch:
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
    def of(
        cls, federation: Federation, tuning: Tuning, splits: Splits, rounds: int
    ) -> PreparedSearch:
        """Prepare every candidate of `rounds`, and every possible final run."""
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
                brief = unpriced_candidate(study, tuning, main_part(splits), rounds)
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
