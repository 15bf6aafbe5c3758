"""A small search: six candidates of a tiny federation."""

from __future__ import annotations

from typing import Any

import attrs

from cohortium import EvaluationPlan, Federation, Tuning
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from tests.support.federations import QuadrantImages, tiny_federation

SITES = 3
EPSILON, DELTA = 6.0, 1e-3


def searched(**changes: Any) -> Federation:
    """A study whose sites have test images, with an evaluation that is paid for."""
    return tiny_federation(
        **{
            "dataset": QuadrantImages(examples=120),
            "sites": SITES,
            "rounds": 3,
            "threads": 1,
            "evaluate_every": 0,
            "holdout_fraction": 0.3,
            "trainer": FedSGD(sampling_rate=1.0),
            "privatizer": Gaussian(epsilon=EPSILON, delta=DELTA),
            "evaluation": EvaluationPlan(epsilon=4.0, delta=DELTA, parts=("accuracy",)),
            **changes,
        }
    )


def rates(study: Federation, *values: float) -> dict[str, Federation]:
    """Candidates that differ in the learning rate."""
    trainer: Any = study.trainer
    return {
        f"rate={value:g}": attrs.evolve(study, trainer=attrs.evolve(trainer, learning_rate=value))
        for value in values
    }


def search_of(study: Federation, **changes: Any) -> Tuning:
    """A search of two candidates, with one round each."""
    return Tuning(**{"studies": rates(study, 0.05, 0.4), "rounds": 1, **changes})
