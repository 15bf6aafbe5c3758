"""The plan of a search, with its price, before its first round."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen

from cohortium.privacy.candidate_number import Distribution
from cohortium.privacy.guarantee import Adjacency, ProtectedAgainst, Unit, rounded_up
from cohortium.study.search import ScoredBy, SearchCost


@frozen(kw_only=True)
class Price:
    """ε of a search and of its final run for one kind of images.

    Guarantees:
        `together` is the bound on ε of the composition of all counted releases at `delta`.  It
        holds against a party that sees every candidate, such as the coordinator.
        It is at most the ε of the study (of its evaluation, for test images).

    Attributes:
        images: "training" or "test" images.
        delta: δ at which every ε holds.
        search: ε of all counted candidates.
        final: ε of the final run (of its evaluation, for test images).  0 without one.
        together: ε of both, and of the releases that `[prior]` declares.
        final_model: ε against a party that sees only the final model, by Papernot and Steinke
            (2022).  None for a fixed number of candidates, to which their theorem does not apply,
            and infinity where composition is better.
        unit: Protected unit.
        adjacency: Difference between neighbouring data.
        against: Adversary that the guarantee covers.
        simulation: Whether the noise comes from a public seed, so nothing is protected.
    """

    images: str
    delta: float
    search: float
    final: float
    together: float
    final_model: float | None = None
    unit: Unit
    adjacency: Adjacency
    against: ProtectedAgainst
    simulation: bool = False

    def __str__(self) -> str:
        """Return the guarantee of search and final run in one line."""
        label = "SIMULATION, not private: " if self.simulation else ""
        whom = "everyone" if self.against == "everyone" else "the coordinator"
        return (
            f"{label}ε = {rounded_up(self.together)} at δ = {rounded_up(self.delta)} for one "
            f"{self.unit} ({self.adjacency}) against {whom}, search and final run"
        )


@frozen(kw_only=True)
class FinalSettings:
    """Budgets of the final run with one candidate's settings.

    Attributes:
        epsilon: ε of the run alone.
        evaluation_epsilon: ε of its evaluation alone, or None where the study states it.
    """

    epsilon: float
    evaluation_epsilon: float | None = None


@frozen(kw_only=True)
class TuningPlan:
    """A search that is planned and priced.

    Attributes:
        digest: SHA-256 of the study, of the candidates, of the settings and of the data.
        score: Images that score a candidate.
        scored_on: A text that says which.
        number: Distribution of the number of candidates.
        rounds: Rounds of each candidate.
        drawn: Name of each candidate to run, in order.  With a random number it is a secret of the
            coordinator.
        counted: Number of candidates that the guarantee counts: all that are drawn, or the cap of
            a random number.
        epsilon: ε of each candidate's run alone.
        evaluation_epsilon: ε of each candidate's evaluation alone, or None.
        training: Cost of one run of each candidate to the training images.
        evaluation: Cost of one evaluation of each candidate to the test images.
        counted_training: Cost of all counted candidates to the training images.
        counted_evaluation: The same to the test images, or None.
        finals: Budgets of the final run by candidate.
        prices: ε by kind of images.
        warnings: Warnings for a careful reader.
    """

    digest: str
    score: ScoredBy
    scored_on: str
    number: Distribution
    rounds: int
    drawn: tuple[str, ...]
    counted: int
    epsilon: float
    evaluation_epsilon: float | None = None
    training: Mapping[str, SearchCost] = field(repr=False)
    evaluation: Mapping[str, SearchCost] = field(factory=dict, repr=False)
    counted_training: SearchCost = field(repr=False)
    counted_evaluation: SearchCost | None = field(default=None, repr=False)
    finals: Mapping[str, FinalSettings] = field(repr=False)
    prices: tuple[Price, ...]
    warnings: tuple[str, ...] = ()
