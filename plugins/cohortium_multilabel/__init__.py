"""The task of several findings for each image, each present, absent or unknown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np
from attrs import field, frozen

from cohortium.plugin import (
    ClassScores,
    DataError,
    Offer,
    Scores,
    Task,
    area_rows,
    areas,
    hookimpl,
    mean_of,
    mean_of_ratios,
    roc_auc,
    roc_curve,
    share_ratio,
    valid_names,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from cohortium.plugin import Estimate, RocCurve

COHORTIUM_API = 1

UNKNOWN: Final = -1
"""Label of a finding that nobody has looked for, or of which nobody is sure."""

COUNTS: Final = 4
"""Numbers that `measure` sums for each finding: true and false positives, false and true
negatives."""


@frozen
class Multilabel:
    """Each image has any number of K findings.

    Outputs are logits, predictions are probabilities of shape (N, K), one for each finding by
    itself.  Labels have shape (N, K), `int8`: 1 for present, 0 for absent, -1 for unknown.
    CheXpert (Irvin et al. 2019) has such labels.

    The loss is the binary cross-entropy, in nats, of each known label.  An example's loss is the
    sum over its known labels divided by K.  So an unknown label changes nothing, and the clip norm
    keeps its meaning for any number of findings.

    Attributes:
        names: Names of the findings, in the order of the columns.
    """

    names: tuple[str, ...] = field(default=(), validator=valid_names)

    def named(
        self, labels: Mapping[str, NDArray[Any]], names: tuple[str, ...], where: str
    ) -> Multilabel:
        """Return the task with `names`, or with the numbers of the columns."""
        columns = {part.shape[1] for part in labels.values()}
        given = names or self.names or tuple(map(str, range(max(columns, default=0))))
        if columns - {len(given)}:
            raise DataError(
                f"{where}: its labels have {max(columns)} columns, and there are {len(given)} "
                "names; give one for each column."
            )
        return attrs.evolve(self, names=given)

    def output_shape(self, size: tuple[int, ...]) -> tuple[int, ...]:  # noqa: ARG002 - any size
        """Return (K,)."""
        return (len(self.names),)

    def read_labels(
        self, labels: NDArray[Any], images: tuple[int, ...], where: str
    ) -> NDArray[np.int8]:
        """Return labels of shape (N, K) as `int8`.  NaN becomes unknown."""
        if labels.ndim != 2 or len(labels) != images[0]:  # noqa: PLR2004 - (N, K)
            raise DataError(
                f"{where} has shape {labels.shape}, but there are {images[0]} images; save one row "
                "for each image, with a column for each finding."
            )
        if labels.dtype.kind not in "biuf":
            raise DataError(
                f"{where} is {labels.dtype}; save 1 for present, 0 for absent and -1 for unknown."
            )
        filled = np.nan_to_num(labels, nan=UNKNOWN) if labels.dtype.kind == "f" else labels
        odd = filled[(filled != 0) & (filled != 1) & (filled != UNKNOWN)]
        if len(odd):
            raise DataError(
                f"{where} holds {odd[0]}; save 1 for present, 0 for absent and -1 for unknown."
            )
        return filled.astype(np.int8)

    def check_labels(self, labels: NDArray[Any], size: tuple[int, ...]) -> str:  # noqa: ARG002
        """Return the fault of labels that are no (N, K) of -1, 0 and 1."""
        wanted = (len(labels), len(self.names))
        if labels.dtype != np.int8 or labels.shape != wanted:
            return f"must be int8 of shape {wanted}, not {labels.dtype} of shape {labels.shape}"
        if len(labels) and not UNKNOWN <= labels.min() <= labels.max() <= 1:
            return "must be 1 for present, 0 for absent and -1 for unknown"
        return ""

    def sample_labels(
        self,
        size: tuple[int, ...],  # noqa: ARG002
        count: int,
        rng: np.random.Generator,
    ) -> NDArray[np.int8]:
        """Return rows of present, absent and, more rarely, unknown findings."""
        shape = (count, len(self.names))
        drawn = rng.choice(np.array([0, 1, UNKNOWN], np.int8), size=shape, p=[0.45, 0.45, 0.1])
        # Each finding is present in one image and absent in another, where there are two.
        drawn[:1], drawn[1:2] = 1, 0
        return drawn

    def losses(self, outputs: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the sum over the known labels, divided by K."""
        from torch.nn import functional

        known = (labels != UNKNOWN).to(outputs.dtype)
        target = labels.clamp(min=0).to(outputs.dtype)
        each = functional.binary_cross_entropy_with_logits(outputs, target, reduction="none")
        return (each * known * (1.0 if weights is None else weights)).mean(1)

    def predict(self, outputs: Tensor) -> Tensor:
        """Return the probability of each finding."""
        return outputs.sigmoid()

    def score(self, predictions: NDArray[Any], labels: NDArray[Any]) -> Scores:
        """Return the mean AUC, the accuracy at one half, and both for each finding.

        They are those of MedMNIST's `Evaluator` where every label is known.
        """
        predictions = np.nan_to_num(predictions)
        rows = tuple(
            self._finding(name, predictions[:, k], labels[:, k])
            for k, name in enumerate(self.names)
        )
        known = labels != UNKNOWN
        target, shares = labels[known] == 1, predictions[known].astype(np.float64)
        chance = np.where(target, shares, 1 - shares).clip(1e-12)
        loss = float(-np.log(chance).sum() / labels.size) if labels.size else None
        return Scores(
            images=len(labels),
            metrics={
                "auc": mean_of(rows, "auc"),
                "accuracy": mean_of(rows, "accuracy"),
                "sensitivity": mean_of(rows, "sensitivity"),
                "specificity": mean_of(rows, "specificity"),
                "loss": loss,
            },
            per_class=rows,
            curves=tuple(
                curve
                for k, name in enumerate(self.names)
                if (curve := self._curve(name, predictions[:, k], labels[:, k])) is not None
            ),
        )

    def example_scores(
        self, predictions: NDArray[Any], labels: NDArray[Any]
    ) -> NDArray[np.float64]:
        """Return the share of each image's known labels that are predicted correctly.

        It is 1 for an image without a known label.
        """
        known = labels != UNKNOWN
        right = ((predictions > 0.5) == (labels == 1)) & known  # noqa: PLR2004 - even odds
        return np.where(known.any(1), right.sum(1) / known.sum(1).clip(1), 1.0)

    @property
    def score_parts(self) -> tuple[str, ...]:
        """AUC, and the rates at even odds, of each finding."""
        return ("auc", "rates")

    def measure(self, part: str, predictions: Tensor, labels: Tensor) -> Tensor:
        """Return a row for each example, in which an unknown label is zeros.

        `auc` has `area_rows` of each finding.
        `rates` has 4K cells, over √K: true and false positives, false and true negatives.
        """
        import torch
        from torch.nn import functional

        present, known = labels == 1, labels != UNKNOWN
        if part == "auc":
            return area_rows(predictions, present, known)
        called = predictions > 0.5  # noqa: PLR2004 - even odds
        cell = torch.where(called, torch.where(present, 0, 1), torch.where(present, 2, 3))
        rows = functional.one_hot(cell, COUNTS) * known[..., None]
        scaled: Tensor = rows.flatten(1).double() / len(self.names) ** 0.5
        return scaled

    def summarize(self, part: str, sums: NDArray[np.float64], noise: float) -> tuple[Estimate, ...]:
        """Return the mean over the findings and each finding's own score."""
        if part == "auc":
            found = areas(sums, noise=noise)
            each = [area.estimate("auc", n) for area, n in zip(found, self.names, strict=True)]
            return (mean_of_ratios(found, "auc", have_shared_examples=True), *each)
        scale = len(self.names) ** 0.5
        noise *= scale
        means: list[Estimate] = []
        singles: list[Estimate] = []
        for metric, hits, misses in (
            ("accuracy", (0, 3), (1, 2)), ("sensitivity", (0,), (2,)), ("specificity", (3,), (1,)),
        ):  # fmt: skip
            # Counts of as many cells on either side carry equal noise.
            deviation = noise * len(hits) ** 0.5
            tables = (sums * scale).reshape(-1, COUNTS)
            rates = [
                share_ratio(
                    float(table[list(hits)].sum()),
                    float(table[list(misses)].sum()),
                    noise=deviation,
                )
                for table in tables
            ]
            means.append(mean_of_ratios(rates, metric, have_shared_examples=True))
            singles += [r.estimate(metric, name) for r, name in zip(rates, self.names, strict=True)]
        return (*means, *singles)

    def counts(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        """Return the number of images with each finding."""
        return np.asarray((labels == 1).sum(0), dtype=np.int64)

    def unknown_counts(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        """Return the number of images whose finding is unknown, for each finding."""
        return np.asarray((labels == UNKNOWN).sum(0), dtype=np.int64)

    def strata(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        """Return the rarest finding of each image, or K for an image without one.

        A skew of these groups moves rare findings most, as in real hospitals.
        """
        counts = self.counts(labels)
        order = np.argsort(counts, kind="stable")
        present = (labels == 1)[:, order]
        return np.where(present.any(1), order[present.argmax(1)], len(self.names)).astype(np.int64)

    def describe(self, prediction: NDArray[Any]) -> dict[str, Any]:
        """Return the findings above one half, and the probability of each."""
        pairs = dict(zip(self.names, map(float, prediction), strict=True))
        found = [name for name, share in pairs.items() if share > 0.5]  # noqa: PLR2004 - even odds
        return {"predicted": "; ".join(found), "probabilities": pairs}

    def _curve(self, name: str, shares: NDArray[Any], labels: NDArray[Any]) -> RocCurve | None:
        known = labels != UNKNOWN
        return roc_curve(name, shares[known], labels[known] == 1)

    def _finding(self, name: str, shares: NDArray[Any], labels: NDArray[Any]) -> ClassScores:
        known = labels != UNKNOWN
        present, called = labels[known] == 1, shares[known] > 0.5  # noqa: PLR2004 - even odds
        hits, alarms = int((present & called).sum()), int((~present & called).sum())
        missed, quiet = int((present & ~called).sum()), int((~present & ~called).sum())
        return ClassScores(
            name=name,
            examples=int(present.sum()),
            metrics={
                **_rates(hits, alarms, missed, quiet),
                "auc": roc_auc(shares[known], present),
            },
        )


def _rates(hits: float, alarms: float, missed: float, quiet: float) -> dict[str, float | None]:
    """Return the rates of a table of two by two."""

    def share(part: float, whole: float) -> float | None:
        return float(part / whole) if whole > 0 else None

    return {
        "sensitivity": share(hits, hits + missed),
        "specificity": share(quiet, quiet + alarms),
        "precision": share(hits, hits + alarms),
        "accuracy": share(hits + quiet, hits + alarms + missed + quiet),
    }


@hookimpl
def cohortium_tasks() -> list[Offer[Task]]:
    """Offer `multilabel`."""
    return [Offer("multilabel", Multilabel, "Any of several findings for each image.")]
