"""The contract of a `Task`: each example by itself, rows of bounded norm, scores that agree."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import field, frozen

from cohortium.data.examples import DataSpec
from cohortium.data.scores import UNBOUNDED, Scores
from cohortium.testing import samples
from cohortium.testing.contract import Check, ConformanceError, ensure

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from cohortium.data.estimates import Estimate
    from cohortium.data.task import Task

EXAMPLES = 24
"""Number of made-up examples."""

SIZES = ((8, 6), (4, 6, 6))
"""Sizes of their images: flat ones and volumes."""

SCALES = (1.0, 1e3)
"""Standard deviations of made-up outputs."""

DRAWS = 100
"""Draws of noise over one sum."""

LEAST_HELD = 0.85
"""Least share of intervals of 95 % that hold the exact score."""

CLOSE = 1e-5
"""Largest gap of two results that should be equal, in single precision."""


@frozen(eq=False)
class _Sample:
    """Labels and outputs for the task, with names, on images of one size."""

    task: Task
    spec: DataSpec
    labels: Tensor = field(repr=False)
    outputs: Tensor = field(repr=False)

    @property
    def predictions(self) -> Tensor:
        return self.task.predict(self.outputs.clone())

    def scored(self) -> tuple[NDArray[Any], NDArray[Any]]:
        return self.predictions.numpy(), self.labels.numpy()


def check_output_shape(task: Task) -> None:
    """The shape of an output is a tuple of positive integers."""
    for size in SIZES:
        shape = _named(task).output_shape(size)
        ensure(
            isinstance(shape, tuple) and shape and all(type(n) is int and n > 0 for n in shape),
            f"output_shape gave {shape!r} for images of {size}; give a tuple of positive integers.",
        )


def check_sample_labels(task: Task) -> None:
    """Made-up labels are labels of the task, one for each example, and repeatable."""
    named = _named(task)
    for size in SIZES:
        drawn = [
            named.sample_labels(size, EXAMPLES, np.random.default_rng(seed)) for seed in (1, 1)
        ]
        ensure(
            len(drawn[0]) == EXAMPLES,
            f"sample_labels gave {len(drawn[0])} labels, and {EXAMPLES} were asked for.",
        )
        ensure(
            np.array_equal(drawn[0], drawn[1]),
            "sample_labels gave two results for equal generators; draw from `rng` alone.",
        )
        fault = named.check_labels(drawn[0], size)
        ensure(not fault, f"labels of sample_labels {fault}.")
        again = named.read_labels(drawn[0], (EXAMPLES, 1, *size), "labels")
        ensure(
            np.array_equal(again, drawn[0]) and again.dtype == drawn[0].dtype,
            "read_labels changed labels that already have their form; return them as they are.",
        )


def check_losses_are_per_example(task: Task) -> None:
    """Example i's loss depends on example i alone, and there is one finite loss for each."""
    import torch

    for sample in _samples(task):
        losses = sample.task.losses(sample.outputs.clone(), sample.labels.clone())
        ensure(
            tuple(losses.shape) == (EXAMPLES,) and bool(torch.isfinite(losses).all()),
            f"losses gave a tensor of shape {tuple(losses.shape)}, or one that is not finite, for "
            f"{EXAMPLES} examples; give one number for each.",
        )
        for k in (0, EXAMPLES - 1):
            alone = sample.task.losses(sample.outputs[k : k + 1], sample.labels[k : k + 1])
            _ensure_close(alone[0], losses[k], "the loss of an example changed with the others")


def check_predictions_are_per_example(task: Task) -> None:
    """Example i's prediction, score and row depend on example i alone."""
    for sample in _samples(task):
        whole = sample.predictions
        rows = [sample.task.measure(p, whole, sample.labels) for p in sample.task.score_parts]
        scores = sample.task.example_scores(*sample.scored())
        ensure(
            scores.shape == (EXAMPLES,) and bool(((scores >= 0) & (scores <= 1)).all()),
            "example_scores must give one number from 0 to 1 for each example.",
        )
        for k in (0, EXAMPLES - 1):
            one = slice(k, k + 1)
            alone = sample.task.predict(sample.outputs[one].clone())
            _ensure_close(alone[0], whole[k], "a prediction changed with the other examples")
            for part, together in zip(sample.task.score_parts, rows, strict=True):
                row = sample.task.measure(part, alone, sample.labels[one])
                _ensure_close(
                    row[0], together[k], "a row of measure changed with the other examples"
                )
            single = sample.task.example_scores(alone.numpy(), sample.labels[one].numpy())
            ensure(
                math.isclose(single[0], scores[k], abs_tol=CLOSE),
                "an example's score changed with the other examples.",
            )


def check_rows_are_bounded(task: Task) -> None:
    """Each row of `measure` has a norm of at most 1, for any outputs."""
    for sample in _samples(task):
        parts = sample.task.score_parts
        ensure(
            isinstance(parts, tuple) and parts and len(set(parts)) == len(parts),
            f"score_parts is {parts!r}; give a tuple of different names.",
        )
        for part in parts:
            rows = sample.task.measure(part, sample.predictions, sample.labels)
            ensure(
                rows.ndim == 2 and len(rows) == EXAMPLES,  # noqa: PLR2004 - (B, M)
                f"measure gave a tensor of shape {tuple(rows.shape)}; give a row for each example.",
            )
            longest = float(rows.double().norm(dim=1).max())
            ensure(
                longest <= 1 + CLOSE,
                f"a row of measure has norm {longest:.3g}; an evaluation at the sites is noised "
                "for 1, so scale the rows.",
            )


def check_summary_agrees_with_score(task: Task) -> None:
    """`summarize` of exact sums equals `score` in each metric that both give.

    An AUC may differ, because it is measured in bins.
    """
    shared: set[str] = set()
    for sample in _samples(task):
        exact = sample.task.score(*sample.scored())
        known: dict[tuple[str, str], float | None] = {
            (metric, ""): value for metric, value in exact.metrics.items()
        }
        for row in exact.per_class:
            known |= {(metric, row.name): value for metric, value in row.metrics.items()}
        for found in _summaries(sample, noise=0.0):
            key = found.metric, found.name
            if key not in known:
                continue
            one, close = known[key], 0.1 if found.metric == "auc" else 1e-4
            ensure(
                (one is None) == (found.value is None)
                and (one is None or found.value is None or abs(one - found.value) <= close),
                f"score gives {found.metric} = {one}, and summarize of the exact sum gives "
                f"{found.value}.",
            )
            shared.add(found.metric)
        ensure(
            shared,
            "score and summarize share no metric, so that an evaluation at the sites says nothing.",
        )


def check_intervals_hold_noise(task: Task) -> None:
    """The interval for noise holds the exact score about as often as it should.

    Noise is drawn many times over one exact sum.  Each score must be held in 85 % of the draws.
    """
    rng = np.random.default_rng(0)
    for sample in _samples(task)[: len(SCALES)]:
        for part in sample.task.score_parts:
            exact = _sum(sample, part)
            truth = [each.value for each in sample.task.summarize(part, exact, 0.0)]
            for noise in (0.5, 4.0):
                held = np.zeros(len(truth))
                for _ in range(DRAWS):
                    sums = exact + noise * rng.standard_normal(len(exact))
                    for k, found in enumerate(sample.task.summarize(part, sums, noise)):
                        value = truth[k]
                        held[k] += value is None or found.noise_low <= value <= found.noise_high
                worst = int(held.argmin())
                ensure(
                    held[worst] >= LEAST_HELD * DRAWS,
                    f"score {worst + 1} of part '{part}' lay in {held[worst] / DRAWS:.0%} of the "
                    f"intervals that summarize gave for noise of {noise:g}; widen them to 95 %.",
                )


def _sum(sample: _Sample, part: str) -> NDArray[np.float64]:
    rows = sample.task.measure(part, sample.predictions, sample.labels)
    total: NDArray[np.float64] = rows.double().sum(0).numpy()
    return total


def _summaries(sample: _Sample, *, noise: float) -> list[Estimate]:
    parts = sample.task.score_parts
    return [e for part in parts for e in sample.task.summarize(part, _sum(sample, part), noise)]


def check_scores(task: Task) -> None:
    """Scores have a main metric, lie in their range, and name the task's classes."""
    for sample in _samples(task):
        scores = sample.task.score(*sample.scored())
        ensure(
            isinstance(scores, Scores),
            f"score gave a {type(scores).__name__}; it must return cohortium.plugin.Scores.",
        )
        ensure(not scores.inconsistency, f"the scores cannot be right: {scores.inconsistency}.")
        ensure(
            scores.main_metric not in UNBOUNDED,
            f"the first metric is {scores.main_metric}; it must be one of which more is better.",
        )
        ensure(scores.images == EXAMPLES, f"score says {scores.images} images, and saw {EXAMPLES}.")
        named = tuple(row.name for row in scores.per_class)
        ensure(
            not named or set(named) <= set(sample.task.names),
            f"the rows of the scores name {named}, and the task names {sample.task.names}.",
        )


def check_learning_improves_the_main_metric(task: Task) -> None:
    """Outputs that follow the gradient of the loss get a better main metric."""
    import torch

    for sample in _samples(task):
        before = sample.task.score(*sample.scored()).main
        outputs = sample.outputs.clone().requires_grad_()
        optimizer = torch.optim.Adam([outputs], lr=0.3)
        for _ in range(60):
            optimizer.zero_grad()
            sample.task.losses(outputs, sample.labels).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        after = _Sample(sample.task, sample.spec, sample.labels, outputs.detach())
        reached = after.task.score(*after.scored()).main
        if sample.outputs.std() < SCALES[-1] / 2:
            ensure(
                reached > before or reached == 1,
                f"the loss fell and the main metric went from {before:.3g} to {reached:.3g}; the "
                "loss must train towards the labels.",
            )


def check_groups(task: Task) -> None:
    """`counts` has a number for each name, and `strata` one for each example."""
    for sample in _samples(task):
        labels = sample.labels.numpy()
        counts, strata = sample.task.counts(labels), sample.task.strata(labels)
        ensure(
            counts.shape == (len(sample.task.names),) and bool((counts >= 0).all()),
            "counts must give one number for each name of the task.",
        )
        ensure(
            strata.shape == (EXAMPLES,) and strata.dtype == np.int64,
            "strata must give one int64 number for each example.",
        )


CHECKS: tuple[Check, ...] = (
    check_output_shape,
    check_sample_labels,
    check_losses_are_per_example,
    check_predictions_are_per_example,
    check_rows_are_bounded,
    check_summary_agrees_with_score,
    check_intervals_hold_noise,
    check_scores,
    check_learning_improves_the_main_metric,
    check_groups,
)
"""Every check of a task."""


def _named(task: Task) -> Task:
    """Return the task with names."""
    if task.names:
        return task
    labels: dict[str, NDArray[Any]] = {}
    return task.named(labels, samples.CLASSES, "the sample")


def _samples(task: Task) -> list[_Sample]:
    import torch

    named, found = _named(task), []
    for size in SIZES:
        spec = DataSpec(channels=1, size=size, task=named, examples=EXAMPLES)
        labels = named.sample_labels(size, EXAMPLES, np.random.default_rng(0))
        for scale in SCALES:
            generator = torch.Generator().manual_seed(0)
            outputs = torch.randn((EXAMPLES, *spec.output_shape), generator=generator) * scale
            found.append(_Sample(named, spec, torch.from_numpy(labels), outputs))
    return found


def _ensure_close(one: Tensor, other: Tensor, fault: str) -> None:
    gap = float((one.double() - other.double()).abs().max())
    if not gap <= CLOSE * max(1.0, float(other.double().abs().max())):
        raise ConformanceError(f"{fault}, by {gap:.3g}; compute each example by itself.")
