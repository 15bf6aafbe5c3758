"""The contract of a `Trainer`: data reaches updates through one method alone.

This method is `SitePrivatizer.set_private_gradient`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from cohortium import parameters
from cohortium.data.examples import Examples
from cohortium.testing import samples
from cohortium.testing.contract import Check, ensure
from cohortium.testing.own_tensors import check_own_tensors, require_logits
from cohortium.testing.probes import (
    COHORT,
    EXAMPLES,
    ProbePrivatizer,
    declared_workload,
    poisson_batches,
    train,
)
from cohortium.testing.server_states import check_server_state

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from cohortium.roles.protocols import Trainer
    from cohortium.roles.values import ExampleIndices, LocalResult

REPLACED = 5
"""Position of the example that the checks replace."""

CLOSE = 1e-6
"""Largest gap of numbers that do not depend on an example."""

WHAT_ELSE = (
    "Let nothing but the losses inside privatizer.set_private_gradient see the data: no "
    "statistic of the batch, "
    "no weight counted from labels, no second network trained on it, no BatchNorm."
)


def check_no_leak(trainer: Trainer) -> str | None:
    """With zero gradients, nothing that `train` returns depends on one example.

    The check replaces one example's image, and its label by each other class.  All that is
    released, the state and the loss of every *other* example must stay unchanged.  This holds in
    the first round and in one that begins with a state.  Losses may change if the workload declares
    mixed examples.
    """
    workload = declared_workload(trainer)
    batches = poisson_batches(workload, always=REPLACED)
    data = samples.examples(EXAMPLES)
    # A count of one class changes only if the example comes into it or leaves it.
    sets = [data, *(_replaced(data, by) for by in range(1, len(samples.CLASSES)))]
    states: list[Mapping[str, Tensor]] = [{} for _ in sets]
    for round_ in range(COHORT.rounds):
        probes = [ProbePrivatizer(batches) for _ in sets]
        one, *others = (
            train(trainer, probe, data=which, round=round_, state=state)
            for probe, which, state in zip(probes, sets, states, strict=True)
        )
        for probe, other in zip(probes[1:], others, strict=True):
            _ensure_same_losses(probes[0], probe, has_mixed_examples=workload.has_mixed_examples)
            _ensure_same_result(one, other)
        states = [one.state, *(other.state for other in others)]
    return "mixes examples: no example-level privacy" if workload.has_mixed_examples else None


def check_declared_work(trainer: Trainer) -> None:
    """Batches come from `privatizer.batches`, with the declared number of gradients."""
    workload = declared_workload(trainer)
    probe = ProbePrivatizer(poisson_batches(workload))
    train(trainer, probe)
    ensure(
        probe.asked == [EXAMPLES],
        f"privatizer.batches was called for {probe.asked or 'no'} examples; call it once a round, "
        f"with the number that the site has ({EXAMPLES} here).",
    )
    used = [batch for batch, _ in probe.seen]
    ensure(
        len(used) == workload.steps,
        f"workload() declares {workload.steps} steps a round, and {len(used)} gradients were "
        "taken; "
        f"noise "
        "is calibrated to the declaration, so both must be equal.",
    )
    ensure(
        all(map(np.array_equal, used, probe.yields)),
        "gradients were taken over other batches than privatizer.batches yielded; the sampling "
        "rate "
        "that privacy is reckoned with is no longer true. Use each as it comes.",
    )


def check_vector(trainer: Trainer) -> None:
    """The vector is finite and in `flatten`'s order, BatchNorm's statistics included."""
    import torch

    for batch_norm in (False, True):
        net = samples.network(batch_norm=batch_norm)
        wanted = parameters.length(net)
        trained = train(
            trainer,
            ProbePrivatizer(poisson_batches(declared_workload(trainer)), fill=None),
            net=net,
        )
        found = trained.vector
        ensure(
            tuple(found.shape) == (wanted,) and found.dtype == torch.float32,
            f"the vector has shape {tuple(found.shape)} and {found.dtype}, where "
            f"parameters.flatten gives {wanted} float32 numbers; make it with parameters.flatten "
            "or flatten_gradients.",
        )
        ensure(
            torch.isfinite(found).all(),
            "one round on noise images made a vector with NaN or infinity; lower the default "
            "learning rate.",
        )
        ensure(
            math.isfinite(trained.weight) and trained.weight >= 0,
            f"the weight is {trained.weight!r}; it is the number of examples behind the vector.",
        )


def check_empty_batches(trainer: Trainer) -> None:
    """A round of empty Poisson batches gives a finite vector."""
    import torch

    nothing: ExampleIndices = np.zeros(0, dtype=np.int64)
    trained = train(
        trainer, ProbePrivatizer([nothing] * declared_workload(trainer).steps, fill=None)
    )
    ensure(
        torch.isfinite(trained.vector).all(),
        "a round of empty batches made NaN or infinity; a Poisson batch may be empty, so divide by "
        "declared numbers only.",
    )


def check_still_without_gradients(trainer: Trainer) -> None:
    """With zero weights and gradients the vector is zero.

    This includes any pull on the weights, such as weight decay.
    """
    import torch

    net = samples.network()
    parameters.load(net, torch.zeros(parameters.length(net)))
    moved = train(
        trainer, ProbePrivatizer(poisson_batches(declared_workload(trainer))), net=net
    ).vector
    ensure(
        float(moved.abs().max()) <= CLOSE,
        f"with zero weights and zero gradients a value of the vector is {float(moved.abs().max())}"
        ": something other than gradients and weights moves it. Noise is the privatizer's.",
    )


def check_direction(trainer: Trainer) -> None:
    """An update points against the gradient, and a gradient along it.

    An update is a change of weights.
    """
    import torch

    releases = declared_workload(trainer).output
    sign = -1.0 if releases == "update" else 1.0
    net = samples.network()
    # The weights point the wrong way, so a trainer that returns them is detected.
    parameters.load(net, torch.full((parameters.length(net),), -sign))
    found = train(
        trainer, ProbePrivatizer(poisson_batches(declared_workload(trainer)), fill=0.01), net=net
    ).vector
    ensure(
        sign * float(found.sum()) > 0,
        f"workload() declares that {releases}s are released, but under a gradient of ones the "
        f"vector sums to {float(found.sum()):.3g}; an update is new weights minus old, a gradient "
        "comes from privatizer.set_private_gradient.",
    )


def check_training_is_repeatable(trainer: Trainer) -> None:
    """Equal tasks and batches give equal bits."""
    import torch

    batches = poisson_batches(declared_workload(trainer))
    one, other = (train(trainer, ProbePrivatizer(batches, fill=None)).vector for _ in range(2))
    ensure(
        torch.equal(one, other),
        "training twice with equal data, batches and seeds gave two vectors; draw augmentation "
        "from task.generator, and keep nothing on the trainer between rounds.",
    )


def check_server(trainer: Trainer) -> None:
    """The server's optimizer covers exactly its given parameters.

    It has a schedule.
    """
    import torch

    net = samples.network()
    trained = parameters.trainable(net)
    made = trainer.make_server_optimizer(trained, COHORT.rounds)
    ensure(
        isinstance(made, tuple)
        and len(made) == 2  # noqa: PLR2004
        and isinstance(made[0], torch.optim.Optimizer)
        and isinstance(made[1], torch.optim.lr_scheduler.LRScheduler),
        "server must return a torch optimizer and a learning-rate schedule of it, as "
        "cohortium.plugin.attach_schedule does.",
    )
    optimizer, schedule = made
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    ensure(
        held == {id(p) for p in trained},
        "the server optimizer does not hold exactly the parameters that it was given; pass them on "
        "as they are.",
    )
    before = parameters.flatten(net)
    for _ in range(COHORT.rounds):
        for parameter in trained:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        schedule.step()
    moved = parameters.flatten(net) - before
    ensure(
        torch.isfinite(moved).all() and float(moved.sum()) < 0,
        "the server optimizer did not go against the pseudo-gradient; it is minus the mean update, "
        "or the mean gradient, and is to be descended.",
    )


def check_personal(trainer: Trainer) -> None:
    """The personal network takes the same inputs and gives the same classes."""
    from torch import nn

    net = samples.network()
    trained = train(
        trainer, ProbePrivatizer(poisson_batches(declared_workload(trainer)), fill=None), net=net
    )
    before = parameters.flatten(net)
    own: nn.Module = trainer.personalize(net, trained.state)
    ensure(
        before.equal(parameters.flatten(net)),
        "personalize changed the global network, which other sites use; change a copy of it.",
    )
    ensure(
        isinstance(own, nn.Module),
        f"personal gave a {type(own).__name__}; return a network, by default the one it was given.",
    )
    require_logits(own)


CHECKS: tuple[Check, ...] = (
    check_no_leak,
    check_declared_work,
    check_vector,
    check_empty_batches,
    check_still_without_gradients,
    check_direction,
    check_training_is_repeatable,
    check_server,
    check_personal,
    check_server_state,
    check_own_tensors,
)
"""Every check of a trainer."""


def _replaced(data: Examples, by: int) -> Examples:
    """Return the data with another image, and with a label that is `by` classes further."""
    images, labels = data.images.copy(), data.labels.copy()
    images[REPLACED] = 255 - images[REPLACED] // 4
    labels[REPLACED] = (labels[REPLACED] + by) % len(samples.CLASSES)
    return Examples(images, labels)


def _ensure_same_result(one: LocalResult, other: LocalResult) -> None:
    import torch

    ensure(
        _close(one.vector, other.vector),
        "the vector changed when one example was replaced, though every gradient was zero: "
        f"training data reaches it past the privatizer. {WHAT_ELSE}",
    )
    extras = [torch.zeros(0) if each.extra is None else each.extra for each in (one, other)]
    ensure(
        _close(*extras),
        "the further numbers of the release changed when one example was replaced, though "
        f"every gradient was zero. {WHAT_ELSE}",
    )
    ensure(
        math.isclose(one.weight, other.weight, rel_tol=CLOSE, abs_tol=CLOSE),
        f"the weight changed from {one.weight:g} to {other.weight:g} when one example was replaced;"
        " it is the number of examples behind the vector, so take it from the number of labels "
        "and not from their values.",
    )
    ensure(
        one.state.keys() == other.state.keys()
        and all(_close(one.state[key], other.state[key]) for key in one.state),
        "the state changed when one example was replaced, though every gradient was zero: a "
        f"later round would carry training data past the privatizer. {WHAT_ELSE}",
    )


def _ensure_same_losses(
    one: ProbePrivatizer, other: ProbePrivatizer, *, has_mixed_examples: bool
) -> None:
    ensure(
        len(one.seen) == len(other.seen)
        and all(np.array_equal(a, b) for (a, _), (b, _) in zip(one.seen, other.seen, strict=True)),
        "the choice of gradients depends on the content of an example; take one over each batch of "
        "privatizer.batches.",
    )
    if has_mixed_examples:
        return
    for (batch, losses), (_, others) in zip(one.seen, other.seen, strict=True):
        rest = batch != REPLACED
        ensure(
            _close(losses[rest], others[rest]),
            "the loss of other examples changed when one was replaced, so that clipping each "
            f"example's gradient no longer bounds the effect of one example. {WHAT_ELSE}",
        )


def _close(one: Tensor, other: Tensor) -> bool:
    import torch

    return one.shape == other.shape and torch.allclose(
        one.double(), other.double(), rtol=CLOSE, atol=CLOSE
    )
