"""The table `[search]` of a study: a search for its settings, which came before the run."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal, Self

from attrs import field, frozen
from attrs.validators import ge, in_, le

from cohortium.privacy.candidate_number import MAX_CANDIDATES
from cohortium.privacy.guarantee import (  # noqa: TC001 - resolved to build the table
    Adjacency,
    ProtectedAgainst,
    Unit,
)
from cohortium.privacy.mechanisms import Mechanism  # noqa: TC001 - resolved to build the table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cohortium.ledger.cost import AttemptCost

ScoredBy = Literal["sites", "public"]
"""Images that score a candidate: the sites' own test images, or public validation images."""

MAX_TIMES = 10**9


@frozen(kw_only=True)
class CountedReleases:
    """Releases of one mechanism.

    Attributes:
        mechanism: Mechanism of one attempt.
        times: Number of attempts.
    """

    mechanism: Mechanism
    times: int = field(validator=[ge(1), le(MAX_TIMES)])


@frozen(kw_only=True)
class SearchCost:
    """Releases of a search about one kind of images, with their terms.

    Attributes:
        unit: Protected unit.
        adjacency: Difference between neighbouring data.
        against: Adversary that their guarantee covers.
        releases: The releases by mechanism.
    """

    unit: Unit = field(validator=in_(("example", "patient", "site")))
    adjacency: Adjacency = field(validator=in_(("zero-out", "replace-one")))
    against: ProtectedAgainst = field(validator=in_(("everyone", "coordinator")))
    releases: tuple[CountedReleases, ...] = ()

    @classmethod
    def of(cls, costs: Mapping[AttemptCost, int]) -> Self:
        """Return the cost of attempts that have one unit, adjacency and adversary."""
        first = next(iter(costs))
        counts: Counter[Mechanism] = Counter()
        for cost, times in costs.items():
            assert cost.mechanism is not None, "each attempt of a search has a guarantee"
            counts[cost.mechanism] += times
        return cls(
            unit=first.unit,
            adjacency=first.adjacency,
            against=first.against,
            releases=tuple(CountedReleases(mechanism=m, times=n) for m, n in counts.items() if n),
        )

    @property
    def spends(self) -> list[tuple[Mechanism, int]]:
        """Mechanisms with their numbers, as `accounting` takes them."""
        return [(each.mechanism, each.times) for each in self.releases]


@frozen(kw_only=True)
class Search:
    """A search for the study's settings before the run, which the guarantee covers.

    `cohortium tune` writes it.  Ledgers have charged the search when it was made.

    Attributes:
        candidates: Number of candidate runs that are counted.
        rounds: Rounds of each candidate.
        scored_by: "sites" for a private evaluation of each candidate at the sites, or "public" for
            public validation images.
        chosen: Name of the chosen settings.  "" in the run of a candidate, whose guarantee counts
            the candidates before it.
        training: Cost to the training images.
        evaluation: Cost to the sites' test images, or None without a private evaluation.
    """

    candidates: int = field(validator=[ge(0), le(MAX_CANDIDATES)])
    rounds: int = field(validator=ge(1))
    scored_by: ScoredBy = field(validator=in_(("sites", "public")))
    chosen: str = ""
    training: SearchCost
    evaluation: SearchCost | None = None
