"""The page on which a hospital's staff decide about a study, before anything leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

from cohortium.reporting.local_page import LocalPage
from cohortium.reporting.pages import guarantee_values, template_environment
from cohortium.reporting.parties import PartyInputs, conditions, party_views
from cohortium.reporting.wording import (
    UNITS,
    count,
    plural,
    size,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cohortium.privacy.guarantee import Guarantee
    from cohortium.privacy.membership import MembershipBound
    from cohortium.roles.values import AggregationGuarantee

_PAGE: Final = LocalPage(
    "cohortium study", "page of a study that waits; give another file with --page"
)
check_study_page = _PAGE.check


@frozen(kw_only=True)
class Release:
    """The vectors that leave a site in a run.

    Attributes:
        attempts: Most attempts, each with one release.
        rounds: Rounds among them.
        values: Numbers of a release.
        size: Bytes of a release.
        is_measurement: Whether it is a sum of scores instead of a change of the model.
    """

    attempts: int
    rounds: int
    values: int
    size: int
    is_measurement: bool

    def sentences(
        self, guarantee: Guarantee | None, aggregation: AggregationGuarantee | None
    ) -> tuple[str, ...]:
        """Return what leaves, in plain sentences."""
        what = (
            "the sum of a model's scores on this hospital's test images"
            if self.is_measurement
            else "a change of the model that this hospital's images suggest"
        )
        spare = self.attempts - self.rounds
        also = f", of which {plural(spare, 'attempt')} may replace failed ones" if spare else ""
        most = f"At most {plural(self.attempts, 'vector')} of {count(self.values)} numbers"
        found = [f"{most} ({size(self.size)} each){also}. Each is {what}."]
        if guarantee is None:
            found.append("No noise is added to it.")
        elif guarantee.simulation:
            found.append("Its noise is from a public seed, so anyone can take it off.")
        else:
            found.append(
                f"The part of {UNITS[guarantee.unit]} in it is bounded, and noise is added before "
                "it leaves."
            )
        if aggregation is None:
            found.append("The coordinator sees each vector by itself.")
        else:
            found.append(
                "Each vector leaves under a mask. Only in a sum over "
                f"{plural(aggregation.min_contributors, 'hospital')} or more do the masks come off."
            )
        found.append(
            "With them leave the hospital's number, its declared number of images, its versions of "
            "software, keys for the masks, and the times of its messages. No image, label or name "
            "leaves."
        )
        return tuple(found)


@frozen(kw_only=True)
class Charge:
    """Privacy spent of the charged images, before and after runs of the study.

    Attributes:
        data: The hospital's name for the images.
        use: Their use: "train" or "test".
        now: ε that is spent, as text.
        after: ε after each number of runs, as text, from one run on.
        delta: δ of each.
        scope: Unit and adversary of each, as text.
        budget: The site's budget, as text, or "".
        is_within: Whether one run fits the budget.
    """

    data: str
    use: str
    now: str
    after: tuple[str, ...]
    delta: float
    scope: str
    budget: str
    is_within: bool


@frozen(kw_only=True)
class StudyOutlook:
    """A study, as its page shows it.

    Attributes:
        site: Number of the hospital.
        digest: Digest of the study.
        status: The decision so far.
        first_asked: Day of the first invitation.
        last_asked: Day of the last invitation without approval.
        decision: The last approval in a sentence, or "".
        inputs: Facts from which the parties' views follow.
        release: What leaves.
        membership: Bounds on membership attacks, as a report after the run has them.
        charge: What it costs.
        study: Tables of the study.
        versions: The site's versions of the code.
        commands: Commands that decide: to approve, and to decline or revoke.
    """

    site: int
    digest: str
    status: str
    first_asked: str
    last_asked: str
    decision: str
    inputs: PartyInputs
    release: Release
    membership: tuple[MembershipBound, ...]
    charge: Charge
    study: Mapping[str, Mapping[str, Any]]
    versions: Mapping[str, str]
    commands: tuple[str, str]

    @property
    def title(self) -> str:
        """Short title: model and trainer, or what is measured."""
        model = self.study.get("model", {}).get("name", "?")
        if self.release.is_measurement:
            return f"Evaluation of {model}"
        return f"Training of {model} with {self.study.get('trainer', {}).get('name', '?')}"


def write_study_page(outlook: StudyOutlook, out: Path) -> None:
    """Write the page of a study, readable by its owner alone.

    Raises:
        RequestError: Nothing can be written at `out`, or another file is there.
        RunError: The file cannot be written.
    """
    _PAGE.check(out)
    _PAGE.write(out, render_study_page(outlook))


def render_study_page(outlook: StudyOutlook) -> str:
    """Return the page of a study."""
    guarantee = outlook.inputs.guarantee
    return (
        template_environment()
        .get_template("study.html")
        .render(
            outlook=outlook,
            leaves=outlook.release.sentences(guarantee, outlook.inputs.aggregation),
            run=guarantee_values(guarantee, outlook.membership),
            views=party_views(outlook.inputs),
            conditions=conditions(outlook.inputs),
        )
    )
