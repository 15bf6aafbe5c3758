"""Statistics: rows of bounded norm, estimates that agree with exact scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from attrs import frozen
from sklearn.metrics import balanced_accuracy_score, recall_score
from torch import nn

from cohortium.data.examples import DataSpec
from cohortium.errors import BrokenNetworkError, PrivacyError
from cohortium.plugin import LocalTask, Multiclass, Workload, mean_gradient
from cohortium.statistics.measuring import MeasuringTrainer
from cohortium.statistics.statistic import (
    ByGroup,
    MeasuredExamples,
    TaskScores,
    images_statistic,
    scores_statistic,
)
from cohortium_multilabel import Multilabel
from cohortium_segmentation import Segmentation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from cohortium.data.estimates import Estimate
    from cohortium.statistics.statistic import Statistic

NAMES = ("a", "b", "c")
TASKS: list[Any] = [Multiclass(NAMES), Multilabel(NAMES), Segmentation(NAMES)]
GROUPS = {"site": ("0", "1"), "sex": ("female", "male")}
N = 60


def spec_of(task: Any) -> DataSpec:
    return DataSpec(channels=2, size=(6, 6), task=task, examples=N)


def examples_of(task: Any, scale: float = 2.0) -> MeasuredExamples:
    spec, rng = spec_of(task), np.random.default_rng(0)
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn((N, *spec.output_shape), generator=generator) * scale
    return MeasuredExamples(
        inputs=torch.from_numpy(rng.random((N, *spec.shape), dtype=np.float32)),
        predictions=task.predict(outputs),
        labels=torch.from_numpy(task.sample_labels(spec.size, N, rng)),
        groups={
            "site": torch.from_numpy(rng.integers(0, 2, N)),
            "sex": torch.from_numpy(rng.integers(-1, 2, N)),
        },
    )


def exact(statistic: Statistic, examples: MeasuredExamples) -> tuple[Estimate, ...]:
    rows = statistic.measure(examples)
    assert rows.shape == (N, len(statistic.cells))
    return statistic.estimate(rows.double().sum(0).numpy(), 0.0)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
@pytest.mark.parametrize("scale", [1.0, 1e4, 1e38, np.inf, np.nan])
def test_rows_have_a_norm_of_at_most_one(task: Any, scale: float) -> None:
    examples = examples_of(task, scale)
    for statistic in (
        scores_statistic(spec_of(task), (), GROUPS), images_statistic(spec_of(task)),
    ):  # fmt: skip
        assert float(statistic.measure(examples).norm(dim=1).max()) <= 1 + 1e-6


def test_exact_sums_give_the_scores_of_scikit_learn() -> None:
    task = Multiclass(NAMES)
    examples = examples_of(task)
    truth, called = examples.labels.numpy(), examples.predictions.argmax(1).numpy()
    found = {
        (e.metric, e.name): e.value
        for e in exact(scores_statistic(spec_of(task), (), {}), examples)
    }
    recalls = recall_score(truth, called, average=None)
    assert found["accuracy", ""] == pytest.approx((truth == called).mean())
    assert found["balanced_accuracy", ""] == pytest.approx(balanced_accuracy_score(truth, called))
    for k, name in enumerate(NAMES):
        assert found["sensitivity", name] == pytest.approx(recalls[k])
        specificity = recall_score(truth != k, called != k)
        assert found["specificity", name] == pytest.approx(specificity)


def test_groups_have_their_own_scores_and_unknown_ones_none() -> None:
    task = Multiclass(NAMES)
    examples = examples_of(task)
    spec = spec_of(task)
    statistic = ByGroup(TaskScores.of(spec, "accuracy"), "sex", GROUPS["sex"])
    found = exact(statistic, examples)
    right = examples.predictions.argmax(1) == examples.labels
    for k, estimate in enumerate(found):
        chosen = examples.groups["sex"] == k
        assert estimate.group == f"sex: {GROUPS['sex'][k]}"
        assert estimate.value == pytest.approx(float(right[chosen].double().mean()))


def test_statistics_of_images_are_those_of_all_pixels() -> None:
    task = Multilabel(NAMES)
    examples = examples_of(task)
    found = {(e.metric, e.name): e for e in exact(images_statistic(spec_of(task)), examples)}
    for channel in range(2):
        pixels = examples.inputs[:, channel].double()
        assert found["mean", str(channel)].value == pytest.approx(float(pixels.mean()))
        deviation = found["deviation", str(channel)]
        assert deviation.value == pytest.approx(float(pixels.std(correction=0)))
        assert deviation.noise_low == pytest.approx(deviation.noise_high)
    held = (examples.labels == 1).double().mean(0)
    assert found["images", ""].value == pytest.approx(N)
    for k, name in enumerate(NAMES):
        assert found["share", name].value == pytest.approx(float(held[k]))


@frozen
class Flat:
    """A model of a given network."""

    make: Callable[[], nn.Module]

    def preprocess(self, images: Tensor) -> Tensor:
        return images

    def build(self, spec: DataSpec, seed: int) -> nn.Module:
        del spec, seed
        return self.make()


class Mixing(nn.Module):
    """Centres a batch, so that one example moves another's output."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(72, 3)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.layer(images.flatten(1))
        return outputs - outputs.mean(0)


class Counting(nn.Module):
    """Counts its calls in a buffer, even while it is scored."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(72, 3)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        outputs: Tensor = self.layer(images.flatten(1)) + self.calls
        return outputs


class Plain:
    """A privatizer's site that sums and forgets."""

    def batches(self, examples: int) -> Iterator[Any]:
        yield np.arange(examples)

    def set_private_gradient(self, net: nn.Module, losses: Any, batch: Any) -> None:
        mean_gradient(net, losses, batch)

    def release(self, vector: Tensor, weight: float) -> Any:
        raise AssertionError


def measured(net: nn.Module, count: int = N) -> Tensor:
    task = Multiclass(NAMES)
    spec, examples = spec_of(task), examples_of(task)
    statistic = scores_statistic(spec, (), {})
    trainer = MeasuringTrainer(
        model=Flat(lambda: net), statistic=statistic, examples_per_site=N, is_private=False
    )
    local = LocalTask(
        net=net,
        images=examples.inputs[:count],
        labels=examples.labels[:count],
        spec=spec,
        round=0,
        rounds=1,
        workload=Workload(output="gradient", steps=1, sampling_rate=1.0),
        generator=torch.Generator(),
        state={},
        groups={},
    )
    return trainer.train(local, Plain()).vector * N


def test_a_network_that_mixes_a_batch_scores_each_example_alone() -> None:
    net = Mixing()
    assert torch.allclose(measured(net, 1) + 0, measured(net, 1))
    one, two = measured(net, 1), measured(net, 2)
    # Every output is zero alone, so that each example is called the first class.
    assert float(one[0] + one[1]) == pytest.approx(0.5)
    assert float(two[0] + two[1]) == pytest.approx(1.0)


def test_a_network_that_changes_while_it_is_scored_is_refused() -> None:
    with pytest.raises((PrivacyError, BrokenNetworkError)):
        measured(Counting())


def test_a_site_without_examples_releases_zeros() -> None:
    assert not measured(nn.Sequential(nn.Flatten(), nn.Linear(72, 3)), 0).any()
