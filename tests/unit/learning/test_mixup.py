"""MixUp: convex pairs of inputs and both targets, and never under a clip by example."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium.errors import StudyError
from cohortium.plugin import (
    Augmentation,
    AugmentedLoss,
    DataSpec,
    LocalTask,
    Multiclass,
    Task,
    Workload,
)
from cohortium_fedavg import FedAvg, FedProx
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from cohortium_multilabel import UNKNOWN, Multilabel
from cohortium_phantom import Phantom
from cohortium_segmentation import Segmentation
from cohortium_skellam import Skellam
from tests.support.federations import tiny_federation

SIZE = (4, 4)
TASKS: dict[str, Task] = {
    "multiclass": Multiclass(("a", "b", "c")),
    "multilabel": Multilabel(("a", "b", "c")),
    "segmentation": Segmentation(("none", "a", "b")),
}
MIXING = (FedAvg(mixup_alpha=0.4), FedProx(mixup_alpha=0.4), FedSGD(mixup_alpha=0.4))


class Recorder(torch.nn.Module):
    """A network whose outputs are a fixed map of its inputs, and which keeps both."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        values = int(np.prod(spec.output_shape))
        self.map = torch.nn.Linear(int(np.prod(spec.shape)), values)
        self.shape = spec.output_shape
        self.inputs = self.outputs = torch.zeros(0)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.inputs = images
        self.outputs = self.map(images.flatten(1)).view(-1, *self.shape)
        return self.outputs


def local_task(task: Task, *, count: int = 6, seed: int = 0) -> LocalTask:
    spec = DataSpec(channels=1, size=SIZE, task=task, examples=count)
    rng = np.random.default_rng(seed)
    return LocalTask(
        net=Recorder(spec),
        images=torch.from_numpy(rng.random((count, *spec.shape), dtype=np.float32)),
        labels=torch.from_numpy(task.sample_labels(SIZE, count, rng)),
        spec=spec,
        round=0,
        rounds=1,
        state={},
        generator=torch.Generator().manual_seed(seed),
        workload=Workload(output="gradient", steps=1, sampling_rate=1.0, has_mixed_examples=True),
    )


def pairs_of(task: LocalTask) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the partner and the share of each mixed input, by least squares on the images."""
    assert isinstance(task.net, Recorder)
    images, mixed = task.images.flatten(1).double(), task.net.inputs.flatten(1).double()
    partners, shares = [], []
    for i, found in enumerate(mixed):
        best = (np.inf, 0, 1.0)
        for j, other in enumerate(images):
            gap = images[i] - other
            share = 1.0 if i == j else float((found - other) @ gap / (gap @ gap))
            error = float((found - other - share * gap).norm())
            best = min(best, (error, j, share))
        assert best[0] < 1e-5
        assert -1e-5 <= best[2] <= 1 + 1e-5
        partners.append(best[1])
        shares.append(best[2])
    return torch.tensor(partners), torch.tensor(shares)


@pytest.mark.parametrize("name", TASKS)
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), alpha=st.sampled_from([0.2, 1.0, 8.0]))
def test_mixed_loss_is_convex_in_both_targets(name: str, seed: int, alpha: float) -> None:
    task = local_task(TASKS[name], seed=seed)
    kept = task.images.clone()
    loss = AugmentedLoss(augmentation=Augmentation(), mixup_alpha=alpha).losses(task)
    found = loss(np.arange(6))
    assert torch.equal(task.images, kept)
    partners, shares = pairs_of(task)
    assert isinstance(task.net, Recorder)
    own = task.spec.task.losses(task.net.outputs, task.labels)
    other = task.spec.task.losses(task.net.outputs, task.labels[partners])
    wanted = shares * own + (1 - shares) * other
    assert found.tolist() == pytest.approx(wanted.tolist(), abs=1e-4)


def test_an_unknown_finding_has_no_part_in_either_loss() -> None:
    task = local_task(TASKS["multilabel"])
    task.labels.fill_(UNKNOWN)
    loss = AugmentedLoss(augmentation=Augmentation(), mixup_alpha=1.0).losses(task)
    assert not loss(np.arange(6)).any()


def test_alpha_zero_changes_nothing() -> None:
    found = []
    augmentation = Augmentation(flips=True)
    for objective in (
        AugmentedLoss(augmentation=augmentation),
        AugmentedLoss(augmentation=augmentation, mixup_alpha=0.0),
    ):
        task = local_task(TASKS["multiclass"])
        torch.nn.init.ones_(task.net.get_parameter("map.weight"))
        torch.nn.init.zeros_(task.net.get_parameter("map.bias"))
        found.append((objective.losses(task)(np.arange(6)), task.generator.get_state()))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_each_copy_is_mixed_and_losses_are_averaged() -> None:
    task = local_task(TASKS["multiclass"])
    augmentation = Augmentation(augmentation_multiplicity=3)
    found = AugmentedLoss(augmentation=augmentation, mixup_alpha=1.0).losses(task)(np.arange(6))
    assert isinstance(task.net, Recorder)
    assert len(task.net.inputs) == 18
    assert found.shape == (6,)


def test_whole_numbers_are_not_mixed() -> None:
    task = local_task(TASKS["multiclass"])
    whole = LocalTask(
        **{name: getattr(task, name) for name in LocalTask.__annotations__ if name != "images"},
        images=(255 * task.images).to(torch.uint8),
    )
    with pytest.raises(StudyError, match=r"mixup_alpha = 1 .* whole numbers \(uint8\); set it"):
        AugmentedLoss(augmentation=Augmentation(), mixup_alpha=1.0).losses(whole)


@pytest.mark.parametrize("alpha", [-0.1, 1001.0, float("nan")])
@pytest.mark.parametrize("trainer", [FedAvg, FedProx, FedSGD])
def test_alpha_out_of_range_is_refused(trainer: Any, alpha: float) -> None:
    with pytest.raises(ValueError, match="mixup_alpha"):
        trainer(mixup_alpha=alpha)


@pytest.mark.parametrize("trainer", MIXING, ids=lambda trainer: type(trainer).__name__)
@pytest.mark.parametrize(
    "privatizer",
    [Gaussian(epsilon=6.0, noise="local"), Gaussian(epsilon=6.0, noise="local", unit="patient")],
    ids=["example", "patient"],
)
def test_mixup_is_refused_under_example_privacy(
    trainer: Any, privatizer: Any, tmp_path: Path
) -> None:
    data = Phantom(examples=120, validation=0, test=12, images_per_patient=2)
    federation = tiny_federation(dataset=data, trainer=trainer, privatizer=privatizer)
    words = f"depends on two patients and the clip .* one {privatizer.unit}; set .*mixup_alpha to 0"
    with pytest.raises(StudyError, match=words):
        federation.run(tmp_path / "run")
    assert not (tmp_path / "run").exists()  # no ledger, no charge


def test_mixup_is_refused_under_skellam(tmp_path: Path) -> None:
    federation = tiny_federation(
        trainer=FedSGD(mixup_alpha=0.4),
        privatizer=Skellam(epsilon=6.0),
        aggregator="secagg",
        max_colluding=1,
        min_contributors=4,
    )
    with pytest.raises(StudyError, match="depends on two patients"):
        federation.run(tmp_path / "run")


def test_mixup_runs_under_privacy_of_sites() -> None:
    privatizer = Gaussian(epsilon=50.0, noise="local", unit="site")
    federation = tiny_federation(trainer=FedAvg(mixup_alpha=0.4), privatizer=privatizer, rounds=1)
    assert federation.run().rounds == 1


@pytest.mark.parametrize("trainer", MIXING, ids=lambda trainer: type(trainer).__name__)
def test_mixup_without_privacy_repeats_and_differs(trainer: Any, tmp_path: Path) -> None:
    def digest(name: str, part: Any) -> str:
        tiny_federation(trainer=part).run(tmp_path / name)
        found: str = json.loads((tmp_path / name / "result.json").read_text())["weights_sha256"]
        return found

    first, second = digest("first", trainer), digest("second", trainer)
    assert first == second
    assert digest("plain", type(trainer)()) != first
