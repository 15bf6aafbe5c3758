"""Declared numbers that the loss adds to logits, and predictions do without."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium.errors import StudyError
from cohortium.plugin import Augmentation, AugmentedLoss, LocalTask
from cohortium_fedsgd import FedSGD
from tests.support.federations import tiny_federation
from tests.unit.learning.test_mixup import TASKS, Recorder, local_task

BATCH = np.arange(6)


def found(task: LocalTask, numbers: tuple[float, ...], **more: object) -> torch.Tensor:
    """Return the losses of a batch under an adjustment."""
    objective = AugmentedLoss(
        augmentation=Augmentation(),
        logit_adjustment=numbers,
        **more,  # type: ignore[arg-type]
    )
    return objective.losses(task)(BATCH)


@pytest.mark.parametrize("name", TASKS)
@settings(deadline=None, max_examples=15)
@given(
    numbers=st.tuples(*[st.floats(-5, 5, width=32)] * 3), mixup_alpha=st.sampled_from([0.0, 1.0])
)
def test_adjustment_equals_a_bias_of_the_network(
    name: str, numbers: tuple[float, ...], mixup_alpha: float
) -> None:
    adjusted, biased = local_task(TASKS[name]), local_task(TASKS[name])
    assert isinstance(adjusted.net, Recorder)
    assert isinstance(biased.net, Recorder)
    biased.net.load_state_dict(adjusted.net.state_dict())
    with torch.no_grad():
        pixels = biased.net.map.bias.view(3, -1)
        pixels += torch.tensor(numbers)[:, None]
    wanted = found(biased, (), mixup_alpha=mixup_alpha)
    assert torch.allclose(found(adjusted, numbers, mixup_alpha=mixup_alpha), wanted, atol=1e-5)


def test_equal_adjustments_change_no_loss_of_one_class() -> None:
    task = local_task(TASKS["multiclass"])
    assert torch.allclose(found(task, (2.0, 2.0, 2.0)), found(task, ()), atol=1e-5)


@pytest.mark.parametrize("numbers", [(1.0,), (0.0,) * 4])
def test_wrong_number_of_adjustments_is_refused(numbers: tuple[float, ...]) -> None:
    words = f"there are {len(numbers)} logit adjustments, but 3 logits; give one for each"
    with pytest.raises(StudyError, match=words):
        found(local_task(TASKS["multiclass"]), numbers)


@pytest.mark.parametrize("number", [101.0, -101.0, float("nan"), float("inf")])
def test_adjustment_beyond_single_precision_is_refused(number: float) -> None:
    with pytest.raises(ValueError, match="logit_adjustment"):
        FedSGD(logit_adjustment=(0.0, number))


def test_adjusting_a_class_up_makes_its_predictions_rarer() -> None:
    def share(number: float) -> int:
        trainer = FedSGD(sampling_rate=1.0, logit_adjustment=(number, 0.0, 0.0, 0.0))
        scores = tiny_federation(trainer=trainer, rounds=2).run().scores
        assert scores is not None
        return sum(row[0] for row in scores.confusion)

    assert share(6.0) < share(-6.0)
