"""Scores and losses of the tasks, against scikit-learn and by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from cohortium import Federation
from cohortium.errors import DataError, StudyError
from cohortium.grid.paired import contrast
from cohortium.inference.classifier import Classifier
from cohortium.plugin import Augmentation, DataSpec, LocalTask, Task, Workload
from cohortium_cnn import CNN
from cohortium_fedavg import FedAvg
from cohortium_multilabel import UNKNOWN, Multilabel
from cohortium_npz import Npz
from cohortium_segmentation import Segmentation
from tests.support.federations import QuadrantImages

FINDINGS = Multilabel(("effusion", "nodule", "mass"))
TISSUES = Segmentation(("background", "lung", "lesion"))


def drawn(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = FINDINGS.sample_labels((8, 8), count, rng)
    return rng.random((count, 3)), labels


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 60))
def test_findings_scores_equal_scikit_learns(seed: int, count: int) -> None:
    shares, labels = drawn(seed, count)
    scores = FINDINGS.score(shares, labels)
    areas, rights = [], []
    for k, row in enumerate(scores.per_class):
        known = labels[:, k] != UNKNOWN
        truth, guess = labels[known, k], shares[known, k]
        areas.append(metrics.roc_auc_score(truth, guess))
        rights.append(metrics.accuracy_score(truth, guess > 0.5))
        recall = metrics.recall_score(truth, guess > 0.5)
        assert row.metrics["auc"] == pytest.approx(areas[-1])
        assert row.metrics["sensitivity"] == pytest.approx(recall)
        assert row.examples == truth.sum()
    assert scores.main_metric == "auc"
    assert scores.main == pytest.approx(np.mean(areas))
    assert scores.metrics["accuracy"] == pytest.approx(np.mean(rights))


@settings(deadline=None)
@given(seed=st.integers(0, 10_000))
def test_unknown_labels_leave_loss_and_gradient_unchanged(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(4, 3, generator=generator, requires_grad=True)
    labels = torch.tensor([[1, 0, UNKNOWN], [UNKNOWN] * 3, [0, 0, 1], [1, UNKNOWN, 1]])
    losses = FINDINGS.losses(outputs, labels)
    by_hand = [
        sum(
            float(-torch.log(o.sigmoid() if y == 1 else 1 - o.sigmoid()))
            for o, y in zip(row, truth, strict=True)
            if y != UNKNOWN
        )
        / 3
        for row, truth in zip(outputs.detach(), labels, strict=True)
    ]
    assert losses.tolist() == pytest.approx(by_hand, abs=1e-5)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert outputs.grad is not None
    assert bool((outputs.grad[labels == UNKNOWN] == 0).all())


def test_strata_are_the_rarest_finding_or_none() -> None:
    labels = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1], [0, 0, UNKNOWN]], np.int8)
    assert FINDINGS.counts(labels).tolist() == [3, 2, 1]
    assert FINDINGS.strata(labels).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros((4, 2), np.uint8), "2 columns, and there are 3 names"),
        (np.full((4, 3), 2), "holds 2; save 1 for present"),
        (np.zeros(4, np.uint8), "a column for each finding"),
        (np.full((4, 3), "yes"), "save 1 for present"),
        (np.full((4, 3), 0.5), r"holds 0\.5"),
    ],
)
def test_labels_that_are_no_findings_are_refused(labels: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        FINDINGS.named({"train": FINDINGS.read_labels(labels, (4, 1, 8, 8), "it")}, (), "it")


def test_nan_is_an_unknown_finding() -> None:
    read = FINDINGS.read_labels(np.array([[1.0, np.nan, 0.0]]), (1, 1, 8, 8), "it")
    assert read.tolist() == [[1, UNKNOWN, 0]]
    assert read.dtype == np.int8


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), size=st.sampled_from([(6, 7), (3, 4, 5)]))
def test_dice_equals_scikit_learns_f1(seed: int, size: tuple[int, ...]) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice(np.array([0, 1, 2], np.uint8), p=[0.7, 0.25, 0.05], size=(5, *size))
    guesses = np.where(rng.random(labels.shape) < 0.7, labels, 0).astype(np.uint8)
    scores = TISSUES.score(guesses, labels)
    for k, row in enumerate(scores.per_class):
        found = [
            (metrics.f1_score(b, a), metrics.jaccard_score(b, a))
            for a, b in zip(guesses.reshape(5, -1) == k, labels.reshape(5, -1) == k, strict=True)
            if a.any() or b.any()
        ]
        expected = np.mean(found, 0) if found else (None, None)
        assert row.metrics["dice"] == pytest.approx(expected[0])
        assert row.metrics["iou"] == pytest.approx(expected[1])
    assert scores.metrics["pixel_accuracy"] == pytest.approx((guesses == labels).mean())
    assert scores.main_metric == "dice"


def test_segmentation_loss_of_one_image_by_hand() -> None:
    outputs = torch.log(torch.tensor([[[[0.9, 0.2]], [[0.1, 0.8]]]]))
    labels = torch.tensor([[[0, 1]]], dtype=torch.uint8)
    two = Segmentation(("out", "in"))
    entropy = -(np.log(0.9) + np.log(0.8)) / 2
    dice = [1 - (2 * 0.9 + 1) / (1.1 + 1 + 1), 1 - (2 * 0.8 + 1) / (0.9 + 1 + 1)]
    expected = entropy + np.mean(dice)
    assert two.losses(outputs, labels).item() == pytest.approx(expected, abs=1e-6)
    weighted = two.losses(outputs, labels, torch.tensor([1.0, 3.0])).item()
    by_hand = -(np.log(0.9) + 3 * np.log(0.8)) / 2 + (dice[0] + 3 * dice[1]) / 2
    assert weighted == pytest.approx(by_hand, abs=1e-6)
    plain = Segmentation(("out", "in"), dice_weight=0.0)
    assert plain.losses(outputs, labels).item() == pytest.approx(entropy, abs=1e-6)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros((4, 8, 9), np.uint8), r"images \(4, 8, 8\); save a mask of the same size"),
        (np.zeros((4, 8, 8)), "save the numbers of classes as uint8"),
        (np.full((4, 8, 8), 300), "values from 300 to 300"),
        (np.full((4, 8, 8), 3), "hold class 3, and there are 3 names"),
    ],
)
def test_labels_that_are_no_masks_are_refused(labels: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        TISSUES.named({"train": TISSUES.read_labels(labels, (4, 1, 8, 8), "it")}, (), "it")


def findings(path: Path) -> dict[str, Any]:
    """Bright corners, of which an image may have several."""
    rng = np.random.default_rng(0)
    held: dict[str, Any] = {"classes": np.array(["left", "right"])}
    for split, count in (("train", 160), ("val", 40), ("test", 60)):
        labels = rng.integers(0, 2, (count, 2))
        images = rng.integers(0, 60, (count, 12, 12))
        images[:, :6, :6] += 120 * labels[:, :1, None]
        images[:, 6:, 6:] += 120 * labels[:, 1:, None]
        unknown = rng.random((count, 2)) < (0.1 if split == "train" else 0)
        held |= {
            f"{split}_images": images.astype(np.uint8),
            f"{split}_labels": np.where(unknown, UNKNOWN, labels).astype(np.int8),
        }
    np.savez(path, **held)
    return held


def study(dataset: Any, **changes: Any) -> Federation:
    return Federation(
        **{
            "dataset": dataset, "model": "cnn", "trainer": "fedavg", "privatizer": "none",
            "aggregator": "plain", "sites": 3, "rounds": 6, "partitioner": "dirichlet",
        }
        | changes
    )  # fmt: skip


def test_multilabel_study_learns_and_predicts(tmp_path: Path) -> None:
    findings(tmp_path / "own.npz")
    task: Task = Multilabel()
    data = Npz(path=str(tmp_path / "own.npz"), task=task)
    result = study(data).run(tmp_path / "run")
    assert result.scores is not None
    assert (result.scores.main_metric, result.accuracy) == (
        "auc",
        result.scores.metrics["accuracy"],
    )
    assert result.scores.main > 0.9
    assert [row.name for row in result.scores.per_class] == ["left", "right"]
    test = data.load().test
    assert test is not None
    classifier = Classifier.open(tmp_path / "run")
    assert classifier.spec.task == Multilabel(("left", "right"))
    assert classifier.spec.task.score(classifier.predict(test.images), test.labels).main == (
        pytest.approx(result.scores.main)
    )
    page = tmp_path / "run" / "report.html"
    assert not page.exists() or "Test AUC" in page.read_text()


@pytest.mark.parametrize("place", ["validation", "test"])
def test_private_multilabel_study_charges_and_scores(tmp_path: Path, place: str) -> None:
    findings(tmp_path / "own.npz")
    data = Npz(path=str(tmp_path / "own.npz"), task=Multilabel())
    result = study(data, trainer="fedsgd", privatizer="gaussian", rounds=3).run()
    assert result.guarantee is not None
    scores = result.scores if place == "test" else result.history[-1].scores
    assert scores is not None
    assert scores.metrics.keys() == {"auc", "accuracy", "sensitivity", "specificity", "loss"}


def test_fedmic_refuses_findings_before_a_run(tmp_path: Path) -> None:
    findings(tmp_path / "own.npz")
    data = Npz(path=str(tmp_path / "own.npz"), task=Multilabel())
    with pytest.raises(StudyError, match="fedmic distils the probabilities of classes"):
        study(data, trainer="fedmic").prepare()


def test_runs_with_findings_are_compared_by_mean_score(tmp_path: Path) -> None:
    findings(tmp_path / "own.npz")
    data = Npz(path=str(tmp_path / "own.npz"), task=Multilabel())
    for name, rounds in (("one", 1), ("other", 2)):
        study(data, rounds=rounds).run(tmp_path / name)
    found = contrast(tmp_path / "one", tmp_path / "other")
    assert [each.metric for each in found.differences] == ["mean score", "balanced mean score"]
    assert found.majority_share is None
    assert ": mean score " in str(found)
    assert "most frequent class" not in str(found)


@frozen
class Halved(CNN):
    """A model that preprocesses images to half their height and width."""

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        return super().preprocess(images[:, :, ::2, ::2])


def test_smaller_inputs_are_flipped_with_their_masks() -> None:
    spec = DataSpec(channels=1, size=(8, 8), task=TISSUES, examples=4)
    labels = torch.from_numpy(TISSUES.sample_labels((8, 8), 4, np.random.default_rng(0)))
    task = LocalTask(
        net=torch.nn.Identity(), images=torch.arange(64.0).view(4, 1, 4, 4), labels=labels,
        spec=spec, round=0, rounds=1, state={}, generator=torch.Generator().manual_seed(0),
        workload=Workload(output="gradient", steps=1, sampling_rate=1.0),
    )  # fmt: skip
    images, masks = Augmentation(flips=True)(task.images, labels, task)
    is_flipped = [not torch.equal(a, b) for a, b in zip(images, task.images, strict=True)]
    assert 0 < sum(is_flipped) < 4
    for flipped, image, mask, before, label in zip(
        is_flipped, images, masks, task.images, labels, strict=True
    ):
        assert torch.equal(image, before.flip(-1) if flipped else before)
        assert torch.equal(mask, label.flip(-1) if flipped else label)
    data = QuadrantImages()
    trainer = FedAvg(flips=True, local_epochs=1)
    assert study(data, model=Halved(), trainer=trainer, rounds=1).run().accuracy is not None
