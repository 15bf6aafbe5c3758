"""Tables of a study about statistics that its sites release.

They are `[evaluation]`, `[measurement]` and `[prior]`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrs import field, frozen
from attrs.validators import ge, in_, le, optional

from cohortium.data.examples import MAX_EXAMPLES
from cohortium.privacy.guarantee import (  # noqa: TC001 - resolved to build the table
    Adjacency,
    ProtectedAgainst,
    Unit,
)
from cohortium.privacy.mechanisms import NOISES, GaussianMechanism
from cohortium.roles.protocols import Privatizer  # noqa: TC001 - resolved to build the table

if TYPE_CHECKING:
    from attrs import Attribute

SITE = "site"
"""The column of groups that every study has: the sites themselves."""

MAX_RETRIES = 1000

MAX_EVERY = 100_000

MAX_PRIOR = 1000

Parts = tuple[str, ...]


def _different(_: object, attribute: Attribute[Parts], names: Parts) -> None:
    """Refuse a name that occurs twice."""
    if len({*names}) != len(names):
        raise ValueError(f"'{attribute.name}' must name each once, not {', '.join(names)}")


@frozen(kw_only=True)
class Measurement:
    """A statistic that the sites of a study release in place of training.

    Attributes:
        of: "scores" of the model on the sites' images, or facts about the "images" themselves.
        data: Images that are measured: the sites' "test" images, or those that they "train" on.
        parts: Parts of the task's scores.  Empty for all of them.
        by: Columns of groups whose main score is measured, too.  "site" stands for the sites.
    """

    of: Literal["scores", "images"] = field(default="scores", validator=in_(("scores", "images")))
    data: Literal["test", "train"] = field(default="test", validator=in_(("test", "train")))
    parts: Parts = field(default=(), validator=_different)
    by: Parts = field(default=(), validator=_different)


@frozen(kw_only=True)
class EvaluationPlan:
    """Evaluation of the model at the sites, after the last round and, if asked, before.

    Attributes:
        every: Rounds between two evaluations.  0 evaluates after the last round alone.  ε covers
            all of them.
        epsilon: ε of the evaluation.  None takes that of its privatizer.
        delta: δ of the evaluation.  None takes that of its privatizer.
        parts: Parts of the task's scores.  Empty for all of them.
        by: Columns of groups whose main score is measured, too.  "site" stands for the sites.
        retries: Further attempts if too few sites reply.  ε covers them.
        examples: Declared test examples over all sites, in a deployment.
        patients: Declared patients among them, where the data name patients.
        privatizer: Privatizer of the evaluation.  None takes that of the study, with clip norm 1.
    """

    every: int = field(default=0, validator=[ge(0), le(MAX_EVERY)])
    epsilon: float | None = None
    delta: float | None = None
    parts: Parts = field(default=(), validator=_different)
    by: Parts = field(default=(), validator=_different)
    retries: int = field(default=0, validator=[ge(0), le(MAX_RETRIES)])
    examples: int | None = field(default=None, validator=optional([ge(1), le(MAX_EXAMPLES)]))
    patients: int | None = field(default=None, validator=optional([ge(1), le(MAX_EXAMPLES)]))
    privatizer: Privatizer | None = None

    def releases(self, rounds: int) -> int:
        """Return the number of evaluations of a training of `rounds` rounds."""
        return -(-rounds // (self.every or rounds))


@frozen(kw_only=True)
class PriorRelease:
    """Releases of the same data before the run, such as statistics of images.

    The guarantee of the run covers them, too.  Ledgers have charged them when they were made.

    Attributes:
        noise_multiplier: Standard deviation of their noise over the sensitivity.
        releases: Number of the releases.
        unit: Protected unit.
        adjacency: Difference between neighbouring data.
        against: Adversary that their guarantee covers.
    """

    noise_multiplier: float = field(validator=[ge(NOISES[0]), le(NOISES[1])])
    releases: int = field(default=1, validator=[ge(1), le(MAX_PRIOR)])
    unit: Unit = field(default="example", validator=in_(("example", "patient", "site")))
    adjacency: Adjacency = field(default="zero-out", validator=in_(("zero-out", "replace-one")))
    against: ProtectedAgainst = field(
        default="everyone", validator=in_(("everyone", "coordinator"))
    )

    @property
    def mechanism(self) -> GaussianMechanism:
        """Mechanism of one release."""
        return GaussianMechanism(noise_multiplier=self.noise_multiplier)
