"""Evaluation at the sites, as rows for a template."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from cohortium.data.estimates import Estimate
    from cohortium.privacy.guarantee import Guarantee
    from cohortium.reporting.reading import Record
    from cohortium.runs.result import Measured


@frozen(kw_only=True)
class SiteEvaluation:
    """Content of the section about an evaluation.

    Attributes:
        measured: The released statistic, or None if the evaluation is not finished.
        guarantee: Guarantee of the evaluation, or None without privacy.
        totals: Estimates of all images and classes together.
        singles: Estimates of single classes, findings or tissues.
        groups: Estimates of groups of images.
        worst: The lowest estimate of a group that is not hidden. None without one, or if all are
            equal.
        overlap: Whether its interval overlaps that of all images.
        course: By rounds of training, the main estimate of each of several evaluations.
        is_old: Whether later weights than the evaluated ones exist.
    """

    measured: Measured | None
    guarantee: Guarantee | None
    totals: tuple[Estimate, ...] = ()
    singles: tuple[Estimate, ...] = ()
    groups: tuple[Estimate, ...] = ()
    worst: Estimate | None = None
    overlap: bool = False
    course: tuple[tuple[int, Estimate], ...] = ()
    is_old: bool = False


def site_evaluation(record: Record) -> SiteEvaluation | None:
    """Return the evaluation of a run, or of a record that is one, or None without any."""
    own = record if "measurement" in record.study else record.evaluation
    if own is None:
        return None
    measured = None if own.result is None else own.result.measured
    if own.result is None or measured is None:
        return SiteEvaluation(measured=None, guarantee=own.guarantee)
    groups = tuple(each for each in measured.estimates if each.group)
    told = [each for each in groups if not each.is_hidden]
    worst = min(told, key=lambda each: each.value or 0.0, default=None)
    if len(told) > 1 and len({each.value for each in told}) == 1:
        worst = None
    totals = tuple(each for each in measured.estimates if not each.group and not each.name)
    course = tuple(
        (each.trained_rounds, each.estimates[0])
        for each in own.result.measured_by_round
        if each.trained_rounds is not None and each.estimates
    )
    trained = None if own is record or record.result is None else record.result.rounds
    same = next((t for t in totals if worst is not None and t.metric == worst.metric), None)
    return SiteEvaluation(
        measured=measured,
        guarantee=own.guarantee,
        totals=totals,
        singles=tuple(each for each in measured.estimates if each.name),
        groups=groups,
        worst=worst,
        overlap=worst is not None and same is not None and worst.high >= same.low,
        course=course if len(course) > 1 else (),
        is_old=bool(course) and trained is not None and course[-1][0] < trained,
    )
