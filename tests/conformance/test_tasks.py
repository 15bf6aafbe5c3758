"""The checks of a task pass for good tasks, and each fails for a bad one."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import pytest
import torch
from attrs import frozen

from cohortium.plugin import Multiclass, Scores, share_ratio
from cohortium.testing import ConformanceError, tasks
from cohortium_multilabel import Multilabel
from cohortium_segmentation import Segmentation

GOOD = Multiclass(("a", "b", "c"))


@frozen
class FlatOutputs(Multiclass):
    def output_shape(self, size: tuple[int, ...]) -> Any:
        return [len(self.names)]


@frozen
class UnlabelledSamples(Multiclass):
    def sample_labels(self, size: Any, count: int, rng: Any) -> Any:
        return super().sample_labels(size, count, rng) + 1


@frozen
class UnseededSamples(Multiclass):
    def sample_labels(self, size: Any, count: int, rng: Any) -> Any:
        return np.random.default_rng().integers(0, len(self.names), count)


@frozen
class MeanLoss(Multiclass):
    """Centres the losses of a batch, so that one example moves another's."""

    def losses(self, outputs: Any, labels: Any, weights: Any = None) -> Any:
        each = super().losses(outputs, labels, weights)
        return each - each.mean()


@frozen
class SummedLoss(Multiclass):
    def losses(self, outputs: Any, labels: Any, weights: Any = None) -> Any:
        return super().losses(outputs, labels, weights).sum()


@frozen
class RankedPredictions(Multiclass):
    def predict(self, outputs: Any) -> Any:
        return outputs.softmax(0)


@frozen
class LongRows(Multiclass):
    def measure(self, part: str, predictions: Any, labels: Any) -> Any:
        return super().measure(part, predictions, labels) * 2


@frozen
class OtherSummary(Multiclass):
    def summarize(self, part: str, sums: Any, noise: float) -> Any:
        return super().summarize(part, sums + 1, noise)


@frozen
class SilentSummary(Multiclass):
    def summarize(self, part: str, sums: Any, noise: float) -> Any:
        return (share_ratio(1.0, 1.0, noise=noise).estimate("closeness"),)


@frozen
class NarrowIntervals(Multiclass):
    """Ignores the noise in its intervals."""

    def summarize(self, part: str, sums: Any, noise: float) -> Any:
        return super().summarize(part, sums, noise / 4)


@frozen
class LossFirst(Multiclass):
    def score(self, predictions: Any, labels: Any) -> Scores:
        scores = super().score(predictions, labels)
        return attrs.evolve(scores, metrics=dict(reversed(scores.metrics.items())))


@frozen
class ImpossibleScores(Multiclass):
    def score(self, predictions: Any, labels: Any) -> Scores:
        scores = super().score(predictions, labels)
        return attrs.evolve(scores, metrics=scores.metrics | {"auc": 7.0})


@frozen
class BackwardLoss(Multiclass):
    def losses(self, outputs: Any, labels: Any, weights: Any = None) -> Any:
        return torch.exp(-super().losses(outputs, labels, weights))


@frozen
class OneCount(Multiclass):
    def counts(self, labels: Any) -> Any:
        return super().counts(labels)[:1]


@frozen
class MatrixStrata(Multiclass):
    def strata(self, labels: Any) -> Any:
        return np.eye(len(self.names))[labels]


NAMES = ("a", "b", "c")
BAD = [
    (tasks.check_output_shape, FlatOutputs(NAMES), "give a tuple of positive integers"),
    (tasks.check_sample_labels, UnlabelledSamples(NAMES), "labels of sample_labels must lie in"),
    (tasks.check_sample_labels, UnseededSamples(NAMES), "draw from `rng` alone"),
    (tasks.check_losses_are_per_example, MeanLoss(NAMES), "loss of an example changed with"),
    (tasks.check_losses_are_per_example, SummedLoss(NAMES), "give one number for each"),
    (tasks.check_predictions_are_per_example, RankedPredictions(NAMES), "prediction changed with"),
    (tasks.check_rows_are_bounded, LongRows(NAMES), "has norm 2; an evaluation at the sites"),
    (tasks.check_summary_agrees_with_score, OtherSummary(NAMES), "summarize of the exact sum"),
    (tasks.check_summary_agrees_with_score, SilentSummary(NAMES), "share no metric"),
    (tasks.check_intervals_hold_noise, NarrowIntervals(NAMES), "widen them to 95 %"),
    (tasks.check_scores, LossFirst(NAMES), "the first metric is loss"),
    (tasks.check_scores, ImpossibleScores(NAMES), "outside the range of scores"),
    (
        tasks.check_learning_improves_the_main_metric,
        BackwardLoss(NAMES),
        "train towards the labels",
    ),
    (tasks.check_groups, OneCount(NAMES), "counts must give one number for each name"),
    (tasks.check_groups, MatrixStrata(NAMES), "one int64 number for each example"),
]


@pytest.mark.parametrize("task", [GOOD, Multiclass(), Multilabel(), Segmentation()], ids=repr)
@pytest.mark.parametrize("check", tasks.CHECKS, ids=lambda check: check.__name__)
def test_good_tasks_pass(task: Any, check: Any) -> None:
    check(task)


@pytest.mark.parametrize(("check", "bad", "words"), BAD)
def test_a_bad_task_fails(check: Any, bad: Any, words: str) -> None:
    with pytest.raises(ConformanceError, match=words):
        check(bad)


def test_every_check_has_bad_implementation() -> None:
    assert {check for check, _, _ in BAD} == set(tasks.CHECKS)
