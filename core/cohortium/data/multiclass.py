"""The task of one class for each image, and its scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from attrs import field, frozen

from cohortium.data.labels import class_names, label_column, valid_names
from cohortium.data.scores import ClassScores, Scores, calibration_bins, mean_of, roc_auc

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor


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
        """Return labels of shape (N,) or (N, 1) as (N,)."""
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
                "loss": float(-np.log(likelihood.clip(1e-12)).mean()),
            },
            per_class=rows,
            confusion=tuple(tuple(int(v) for v in row) for row in confusion),
            calibration=calibration_bins(predictions.max(1), called == labels),
            **_majority(confusion, self.names),
        )

    def example_scores(
        self, predictions: NDArray[Any], labels: NDArray[Any]
    ) -> NDArray[np.float64]:
        """Return 1 for each correct prediction, and 0 for each wrong one."""
        hits: NDArray[np.bool_] = predictions.argmax(1) == labels
        return hits.astype(np.float64)

    def measure(self, predictions: Tensor, labels: Tensor) -> Tensor:
        """Return each example's cell of the confusion matrix, shape (B, K²).

        The sum of the rows is the confusion matrix.  A row has norm 1.
        """
        from torch.nn import functional

        k = len(self.names)
        cells = labels * k + predictions.argmax(1)
        return functional.one_hot(cells, k * k).to(predictions.dtype)

    def summarize(self, sums: NDArray[np.float64], examples: int) -> Scores:
        """Return the scores of a confusion matrix, shape (K²,)."""
        k = len(self.names)
        confusion = sums.reshape(k, k)
        rows = tuple(_class_scores(name, c, confusion, None) for c, name in enumerate(self.names))
        return Scores(
            images=examples,
            metrics={
                "accuracy": float(np.trace(confusion)) / examples,
                "balanced_accuracy": mean_of(rows, "sensitivity"),
            },
            per_class=rows,
        )

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
    """Return the scores of class `c` against the rest, from counts that may be noised."""
    hits, total = float(confusion[c, c]), float(confusion.sum())
    of_class, called = float(confusion[c].sum()), float(confusion[:, c].sum())
    others = total - of_class
    return ClassScores(
        name=name,
        examples=max(0, round(of_class)),
        metrics={
            "sensitivity": hits / of_class if of_class > 0 else None,
            "specificity": 1 - (called - hits) / others if others > 0 else None,
            "precision": hits / called if called > 0 else None,
            "auc": auc,
        },
    )
