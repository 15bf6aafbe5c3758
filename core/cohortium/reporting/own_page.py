"""The page of a hospital's own exact figures, for the people of the hospital alone.

The page is one file without links to anything else. Only its owner can read it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import field, frozen

from cohortium.data.scores import columns_of
from cohortium.errors import RecordError
from cohortium.reporting.local_page import LocalPage
from cohortium.reporting.pages import template_environment
from cohortium.runs.stored_result import ResultFile, read_result

if TYPE_CHECKING:
    from pathlib import Path

    from cohortium.data.scores import GroupScore, Scores
    from cohortium.privacy.guarantee import Guarantee
    from cohortium.runs.result import Measured

_PAGE: Final = LocalPage(
    "cohortium own-report", "page of own figures; give another file with --out"
)
check_own_page = _PAGE.check


@frozen(kw_only=True)
class OwnModel:
    """A model on the hospital's own test images.

    Attributes:
        scores: Its exact scores.
        main: The main metric with a sampling interval at 95 %, or None without predictions.
    """

    scores: Scores
    main: GroupScore | None


@frozen(kw_only=True)
class Released:
    """Scores that the federation has released.

    Attributes:
        measured: The released sum and its estimates.
        guarantee: Its guarantee, or None without privacy.
        weights_sha256: SHA-256 of the evaluated weights.
    """

    measured: Measured
    guarantee: Guarantee | None
    weights_sha256: str

    @classmethod
    def read(cls, path: Path) -> Released:
        """Read the `result.json` of an evaluation.

        Raises:
            RecordError: It is missing or damaged, or has no evaluation.
        """
        result = read_result(path, ResultFile)
        if result is None or result.measured is None or not result.measured.estimates:
            raise RecordError(
                f"{path} holds no scores of hospitals; give the result.json in the folder "
                "`evaluation` of the run."
            )
        return cls(
            measured=result.measured,
            guarantee=result.guarantee,
            weights_sha256=result.weights_sha256,
        )


@frozen(kw_only=True)
class OwnFigures:
    """Figures of one hospital.

    Attributes:
        site: Number of the hospital.
        dataset_id: Its name for the test images.
        written: Time of the evaluation.
        session: Session of the evaluation.
        weights_sha256: SHA-256 of the federation's weights.
        train_images: Number of its training images.
        federated: The federation's model.
        alone: The model that it trained alone, or None.
        difference: Main metric of the federation's model minus that of the other, or None.
        draws_patients: Whether the difference's interval draws whole patients.
        released: The scores that the federation has released, or None.
        overrides: Changes of the study for the model that it trained alone.
    """

    site: int
    dataset_id: str
    written: str
    session: str
    weights_sha256: str
    train_images: int
    federated: OwnModel
    alone: OwnModel | None
    difference: GroupScore | None
    draws_patients: bool
    released: Released | None = field(default=None)
    overrides: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """A sentence about the difference, or "" without one."""
        found = self.difference
        if found is None or found.score is None:
            return ""
        if found.low is None or found.high is None:
            return "There are too few test images to tell the two models apart."
        if found.low > 0:
            return "The federation’s model is better here than chance explains."
        if found.high < 0:
            return "The model trained alone is better here than chance explains."
        return "The test images do not tell the two models apart."


def write_own_page(figures: OwnFigures, out: Path) -> None:
    """Write the page of a hospital's own figures, readable by its owner alone.

    Raises:
        RequestError: Nothing can be written at `out`, or another file is there.
        RunError: The file cannot be written.
    """
    _PAGE.check(out)
    _PAGE.write(out, render_own_page(figures))


def render_own_page(figures: OwnFigures) -> str:
    """Return the page of a hospital's own figures."""
    scores = figures.federated.scores
    classes = scores.per_class
    alone = {} if figures.alone is None else {r.name: r for r in figures.alone.scores.per_class}
    return (
        template_environment()
        .get_template("own.html")
        .render(
            own=figures,
            scores=scores,
            main=scores.main_metric,
            columns=columns_of(classes),
            classes=[(row, alone.get(row.name)) for row in classes],
        )
    )
