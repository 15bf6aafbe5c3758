"""The task of one class for each image, and its scores."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np
from attrs import field, frozen

from cohortium.data.estimates import (
    Ratio,
    area_rows,
    areas,
    mean_of_ratios,
    mean_ratio,
    share_ratio,
)
from cohortium.data.labels import class_names, label_column, valid_names
from cohortium.data.scores import (
    ClassScores,
    Scores,
    calibration_bins,
    matthews_correlation,
    mean_of,
    roc_auc,
    roc_curve,
)
from cohortium.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from cohortium.data.estimates import Estimate

_TWO: Final = 2
"""Classes of which one ROC curve says everything."""


@frozen
class Multiclass:
    """Each image has exactly one of K classes.

    Outputs are logits, predictions are probabilities of shape (N, K), and labels are class numbers
    of shape (N,), `int64`.  The loss is the cross-entropy in nats.

    Attributes:
        names: Names of the classes, which labels index.
    """

    names: tuple[str, ...] = field(default=(), validator=valid_names)

    def named(
        self, labels: Mapping[str, NDArray[Any]], names: tuple[str, ...], where: str
    ) -> Multiclass:
        """Return the task with `names`, or with the numbers of the labels (see `class_names`).

        Args:
            labels: Labels by split.
            names: The declared names, or ().
            where: Name of the data in an error.
        """
        return attrs.evolve(self, names=class_names(labels, names or self.names, where))

    def output_shape(self, size: tuple[int, ...]) -> tuple[int, ...]:  # noqa: ARG002 - any size
        """Return (K,)."""
        return (len(self.names),)

    def read_labels(
        self, labels: NDArray[Any], images: tuple[int, ...], where: str
    ) -> NDArray[np.int64]:
        """Return labels of shape (N,) or (N, 1) as (N,).

        Raises:
            DataError: They are masks, or other values than numbers of classes.
        """
        if labels.shape == (images[0], *images[2:]):
            raise DataError(
                f"{where} has the shape of the images, {labels.shape}, as masks have; set "
                'task = "segmentation" of the data set.'
            )
        return label_column(labels, images[0], where)

    def check_labels(self, labels: NDArray[Any], size: tuple[int, ...]) -> str:  # noqa: ARG002
        """Return the fault of labels that are not (N,) or index no name."""
        if labels.ndim != 1 or labels.dtype != np.int64:
            return f"must be int64 of shape (N,), not {labels.dtype} of shape {labels.shape}"
        if len(labels) and (labels.min() < 0 or labels.max() >= len(self.names)):
            return f"must lie in 0…{len(self.names) - 1}, found {labels.min()}…{labels.max()}"
        return ""

    def sample_labels(
        self,
        size: tuple[int, ...],  # noqa: ARG002
        count: int,
        rng: np.random.Generator,  # noqa: ARG002
    ) -> NDArray[np.int64]:
        """Return each class in turn."""
        return np.arange(count) % len(self.names)

    def losses(self, outputs: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the cross-entropy of each example."""
        from torch.nn import functional

        return functional.cross_entropy(outputs, labels, weight=weights, reduction="none")

    def predict(self, outputs: Tensor) -> Tensor:
        """Return the probabilities."""
        return outputs.softmax(1)

    def score(self, predictions: NDArray[Any], labels: NDArray[Any]) -> Scores:
        """Return accuracy, balanced accuracy, AUC, loss, confusion matrix and calibration.

        If a network's outputs have overflowed, a NaN counts as probability 0.
        """
        predictions = np.nan_to_num(predictions)
        called, k = predictions.argmax(1), len(self.names)
        confusion = np.bincount(labels * k + called, minlength=k * k).reshape(k, k)
        rows = tuple(
            _class_scores(name, c, confusion, roc_auc(predictions[:, c], labels == c))
            for c, name in enumerate(self.names)
        )
        likelihood = predictions[np.arange(len(labels)), labels].astype(np.float64)
        return Scores(
            images=len(labels),
            metrics={
                "accuracy": float((called == labels).mean()),
                "balanced_accuracy": mean_of(rows, "sensitivity"),
                "auc": mean_of(rows, "auc"),
                "mcc": matthews_correlation(confusion),
                "loss": float(-np.log(likelihood.clip(1e-12)).mean()),
            },
            per_class=rows,
            confusion=tuple(tuple(int(v) for v in row) for row in confusion),
            calibration=calibration_bins(predictions.max(1), called == labels),
            curves=tuple(
                curve
                for c, name in enumerate(self.names)
                if (curve := roc_curve(name, predictions[:, c], labels == c)) is not None
            ),
            **_majority(confusion, self.names),
        )

    def example_scores(
        self, predictions: NDArray[Any], labels: NDArray[Any]
    ) -> NDArray[np.float64]:
        """Return 1 for each correct prediction, and 0 for each wrong one."""
        hits: NDArray[np.bool_] = predictions.argmax(1) == labels
        return hits.astype(np.float64)

    @property
    def score_parts(self) -> tuple[str, ...]:
        """Accuracy, sensitivity and specificity by class, AUC, and calibration."""
        return ("accuracy", "classes", "auc", "calibration")

    def measure(self, part: str, predictions: Tensor, labels: Tensor) -> Tensor:
        """Return a row for each example.

        The rows of `accuracy` have two cells: right and wrong.

        The rows of `classes` have 3K cells, over √2.
        They are right and wrong by true class, and wrong by predicted class.

        The rows of `auc` are `area_rows` of each class against the rest.
        With two classes, they are those of the second one alone.

        The rows of `calibration` have three cells, over √3.
        They are confidence minus success, its square, and one.
        """
        import torch
        from torch.nn import functional

        k = len(self.names)
        shares = predictions.double().nan_to_num()
        called = shares.argmax(1)
        right = called == labels
        if part == "accuracy":
            return torch.stack([right, ~right], 1).double()
        if part == "classes":
            truth = functional.one_hot(labels + k * ~right, 2 * k)
            alarm = functional.one_hot(called, k) * ~right[:, None]
            return torch.cat([truth, alarm], 1).double() / math.sqrt(2)
        if part == "auc":
            positive = functional.one_hot(labels, k).bool()
            chosen = slice(1, 2) if k == _TWO else slice(None)
            return area_rows(shares[:, chosen], positive[:, chosen])
        gap = shares.amax(1).clamp(0, 1) - right.double()
        return torch.stack([gap, gap.square(), torch.ones_like(gap)], 1) / math.sqrt(3)

    def summarize(self, part: str, sums: NDArray[np.float64], noise: float) -> tuple[Estimate, ...]:
        """Return the scores of a part.

        The `calibration_gap` is the mean confidence minus the accuracy, and `brier` the mean square
        of that difference.
        """
        k = len(self.names)
        if part == "accuracy":
            return (share_ratio(sums[0], sums[1], noise=noise).estimate("accuracy"),)
        if part == "classes":
            return self._by_class(sums * math.sqrt(2), noise * math.sqrt(2))
        if part == "auc":
            found = areas(sums, noise=noise)
            if k == _TWO:
                return (found[0].estimate("auc"),)
            each = [a.estimate("auc", name) for a, name in zip(found, self.names, strict=True)]
            return (mean_of_ratios(found, "auc", have_shared_examples=True), *each)
        gap, square, count = sums * math.sqrt(3)
        noise *= math.sqrt(3)
        spread = max(square, 0.0) / max(count, 1.0)
        return (
            mean_ratio(gap, count, noise=noise, spread=spread).estimate(
                "calibration_gap", lowest=-1.0
            ),
            # A square of a share varies at most as a share of the same mean.
            mean_ratio(square, count, noise=noise, spread=spread * (1 - min(spread, 1))).estimate(
                "brier"
            ),
        )

    def _by_class(self, sums: NDArray[np.float64], noise: float) -> tuple[Estimate, ...]:
        """Return balanced accuracy, and sensitivity and specificity of each class."""
        hits, misses, alarms = sums.reshape(3, -1)
        held = hits + misses
        recalls = [share_ratio(h, m, noise=noise) for h, m in zip(hits, misses, strict=True)]
        found = [mean_of_ratios(recalls, "balanced_accuracy")]
        for c, name in enumerate(self.names):
            others = float(held.sum() - held[c])
            quiet = others - float(alarms[c])
            # `others` sums 2(K - 1) cells, and the alarms are one more: A - θB is
            # (1 - θ)·others - alarms.
            cells, variance = 2 * (len(self.names) - 1), noise * noise
            specificity = Ratio(
                part=quiet,
                whole=others,
                noise=((cells + 1) * variance, -2 * cells * variance, cells * variance),
                sampling=(0.0, max(others, 0.0), -max(others, 0.0)),
            )
            found += [recalls[c].estimate("sensitivity", name)]
            found += [specificity.estimate("specificity", name)]
        return tuple(found)

    def counts(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        """Return the number of examples of each class."""
        return np.bincount(labels, minlength=len(self.names))

    def strata(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        """Return the labels."""
        return np.asarray(labels, dtype=np.int64)

    def describe(self, prediction: NDArray[Any]) -> dict[str, Any]:
        """Return the most probable class, and the probability of each."""
        return {
            "predicted": self.names[int(prediction.argmax())],
            "probabilities": dict(zip(self.names, map(float, prediction), strict=True)),
        }


def _majority(confusion: NDArray[np.int64], names: tuple[str, ...]) -> dict[str, Any]:
    """Return the share and the name of the most frequent class, or of the first of several."""
    counts = confusion.sum(1)
    most = int(counts.argmax())
    share = float(counts[most] / counts.sum()) if counts.sum() else 0.0
    return {"majority_share": share, "majority_class": names[most]}


def _class_scores(name: str, c: int, confusion: NDArray[Any], auc: float | None) -> ClassScores:
    """Return the scores of class `c` against the rest."""
    hits, total = float(confusion[c, c]), float(confusion.sum())
    of_class, called = float(confusion[c].sum()), float(confusion[:, c].sum())
    others = total - of_class
    return ClassScores(
        name=name,
        examples=int(of_class),
        metrics={
            "sensitivity": hits / of_class if of_class > 0 else None,
            "specificity": 1 - (called - hits) / others if others > 0 else None,
            "precision": hits / called if called > 0 else None,
            "auc": auc,
        },
    )
