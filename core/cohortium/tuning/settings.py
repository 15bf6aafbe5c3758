"""The settings of a search."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from attrs import field, frozen
from attrs.validators import ge, gt, in_, le, lt

from cohortium.errors import StudyError
from cohortium.federation import Federation
from cohortium.privacy.candidate_number import CandidateNumber, Distribution
from cohortium.study.search import ScoredBy

GIVEN = "given"
"""Name of the study's own settings, which are used if a random number of candidates is 0."""


@frozen(kw_only=True)
class Tuning:
    """A search for a study's settings inside its ε.

    Attributes:
        studies: The studies among which the search chooses, by name.  They have the budget of the
            study that is tuned, and differ in other settings.
        rounds: Rounds of each candidate.  0, the default, takes as many as leave the weights as
            noisy as those of the final run.  They have the final run's share of statistics rounds.
            The best rate and clip of a candidate are then about those of the final run.
        share: ε of all candidates together, over the study's ε.  The final run has the rest, by
            composition.
        evaluation_share: The same for the sites' test images, of the ε of `[evaluation]`.  Without
            `[evaluation]` there is no final evaluation, and the candidates have all of it.
        score: "sites" scores each candidate by a private evaluation at the sites, "public" by the
            data set's public validation images.
        candidates: Number of candidates.  With a fixed number they are different and drawn by the
            seed, and 0 takes all.  With a random number, it is the mean.
        number: "fixed", or the distribution of a secret random number: "poisson" or "negative
            binomial".  Candidates are then drawn with repetition.
        shape: η of the negative binomial distribution.
    """

    studies: Mapping[str, Federation] = field(repr=False)
    rounds: int = field(default=0, validator=ge(0))
    share: float = field(default=0.2, validator=[gt(0), lt(1)])
    evaluation_share: float = field(default=0.5, validator=[gt(0), lt(1)])
    score: ScoredBy = field(default="sites", validator=in_(("sites", "public")))
    candidates: int = field(default=0, validator=[ge(0), le(1000)])
    number: Distribution = field(
        default="fixed", validator=in_(("fixed", "poisson", "negative binomial"))
    )
    shape: float = field(default=1.0, validator=[gt(-1), le(100)])

    def __attrs_post_init__(self) -> None:
        """Refuse numbers and names that contradict one another."""
        if not self.studies:
            raise StudyError("a search needs candidates; name at least one.")
        if GIVEN in self.studies:
            raise StudyError(f"no candidate can be called '{GIVEN}', the study's own settings.")
        odd = next((n for n in self.studies if "/" in n or n.startswith(".") or not n), None)
        if odd is not None:
            raise StudyError(f"'{odd}' cannot name a candidate, which is also a folder's name.")
        if self.number == "fixed" and self.candidates > len(self.studies):
            raise StudyError(
                f"candidates = {self.candidates} is more than the {len(self.studies)} "
                "combinations; lower it, or take 0 for all."
            )

    @property
    def random_number(self) -> CandidateNumber:
        """Distribution of the number of candidates.

        Raises:
            StudyError: It cannot have this mean.
        """
        mean = self.candidates or len(self.studies)
        try:
            return CandidateNumber(distribution=self.number, mean=mean, shape=self.shape)
        except ValueError as error:
            raise StudyError(f"the number of candidates: {error}.") from error

    @property
    def terms(self) -> dict[str, object]:
        """Everything except for the studies."""
        return {f.name: getattr(self, f.name) for f in attrs.fields(Tuning) if f.name != "studies"}
