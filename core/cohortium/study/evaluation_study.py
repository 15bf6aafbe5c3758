"""The study of an evaluation: the same federation, whose sites release scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

import attrs

from cohortium.errors import StudyError
from cohortium.study.measurement import Measurement
from cohortium.study.study import Study

if TYPE_CHECKING:
    from cohortium.data.examples import DataSpec
    from cohortium.roles.protocols import Privatizer
    from cohortium.study.measurement import EvaluationPlan

S = TypeVar("S", bound=Study)


def evaluation_study(study: S, evaluation: EvaluationPlan, releases: int | None = None) -> S:
    """Return the study that evaluates the model of `study` at its sites.

    Its rounds are the evaluations, so its privacy covers all of them.

    Args:
        study: The study that trains.
        evaluation: Its evaluation.
        releases: Number of evaluations.  None takes those that are due while `study` trains.

    Raises:
        StudyError: The evaluation contradicts the study.
    """
    return attrs.evolve(
        study,
        evaluation=None,
        prior=None,
        measurement=Measurement(parts=evaluation.parts, by=evaluation.by),
        data=_test_data(study, evaluation),
        privatizer=measuring_privatizer(
            evaluation.privatizer or study.privatizer, evaluation.epsilon, evaluation.delta
        ),
        rounds=evaluation.releases(study.rounds) if releases is None else releases,
        retries=evaluation.retries,
        cohort_size=0,
        observers=(),
    )


def statistics_study(study: S, epsilon: float | None, delta: float | None) -> S:
    """Return the study that releases facts about the training images of `study`.

    Args:
        study: The study that is to train.
        epsilon: ε of the release.  None takes that of the study.
        delta: δ of the release.  None takes that of the study.

    Raises:
        StudyError: The study's privatizer cannot release sums of examples.
    """
    return attrs.evolve(
        study,
        evaluation=None,
        prior=None,
        search=None,
        measurement=Measurement(of="images", data="train"),
        privatizer=measuring_privatizer(
            study.privatizer,
            epsilon,
            delta,
            what="the statistics",
            place="with --set, such as --set privatizer.name=gaussian",
        ),
        rounds=1,
        cohort_size=0,
        observers=(),
    )


def _test_data(study: Study, evaluation: EvaluationPlan) -> DataSpec | None:
    """Return the declared facts about the hospitals' test images, or None in a simulation."""
    declared = evaluation.examples, evaluation.patients
    if study.data is None:
        if declared != (None, None):
            raise StudyError(
                "[evaluation] examples and patients are for a deployment; a simulation counts the "
                "test images itself."
            )
        return None
    if evaluation.examples is None:
        raise StudyError(
            "[evaluation] needs examples, the number of test images over all hospitals together; "
            "ask them, and declare it."
        )
    return attrs.evolve(
        study.data,
        examples=evaluation.examples,
        patients=evaluation.patients,
        # Hospitals need no columns that nothing is measured by.
        groups=tuple(column for column in study.data.groups if column.name in evaluation.by),
    )


def measuring_privatizer(
    privatizer: Privatizer,
    epsilon: float | None,
    delta: float | None,
    *,
    what: str = "the evaluation",
    place: str = "under [evaluation.privatizer]",
) -> Privatizer:
    """Return `privatizer` for rows of norm 1, with another ε and δ where they are given.

    Args:
        privatizer: The study's.
        epsilon: ε of the release.  None takes that of `privatizer`.
        delta: δ of the release.  None takes that of `privatizer`.
        what: The release, in the words of an error.
        place: Where to name another privatizer, in the words of an error.

    Raises:
        StudyError: The privatizer has no such parameter, refuses a value, or hides whole sites.
    """
    value = cast("Any", privatizer)
    names = {each.name for each in attrs.fields(type(value))}
    wanted = {"epsilon": epsilon, "delta": delta}
    changes: dict[str, float | str] = {name: v for name, v in wanted.items() if v is not None}
    odd = sorted(changes.keys() - names)
    if odd:
        raise StudyError(
            f"{what}: {odd[0]} = {changes[odd[0]]:g} is given, and the privatizer has no such "
            f"parameter; name one that has it {place}."
        )
    if getattr(privatizer, "unit", None) == "site":
        raise StudyError(
            f"{what}: single examples are summed, and the privatizer hides whole sites; name one "
            f"with unit 'example' or 'patient' {place}."
        )
    if "clip_norm" in names:
        changes["clip_norm"] = 1.0
    # Rows are scaled to the clip norm, and no server optimizer takes their sum.
    fixed: dict[str, float | str] = {"target_unclipped": 0.0, "noise_schedule": "constant"}
    changes |= {name: value for name, value in fixed.items() if name in names}
    try:
        found: Privatizer = attrs.evolve(value, **changes)
    except (TypeError, ValueError) as error:
        # attrs begins with the rejected parameter, in quotes.
        told = str(error.args[0] if error.args else error)
        raise StudyError(f"{what}: {told.rstrip('.')}.") from error
    return found
