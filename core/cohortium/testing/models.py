"""The contract of a `Model`: fixed preprocessing, and networks from seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cohortium import parameters
from cohortium.catalog.networks import build_network
from cohortium.clipping.batch_mixing import find_batch_mixing_layers, require_per_example_gradients
from cohortium.clipping.clipped_sum import clipped_sum, mean_gradient
from cohortium.errors import StudyError
from cohortium.testing import samples
from cohortium.testing.contract import Check, ConformanceError, ensure
from cohortium.testing.networks import (
    CLOSE,
    SPEC,
    build_with_inputs,
    largest_gap,
    mixes_examples,
    outputs_of,
    seeded_losses,
    suitable_spec,
)

if TYPE_CHECKING:
    from cohortium.roles.protocols import Model

SHAPES = ((1, 28, 28), (3, 28, 28), (3, 32, 40), (2, 64, 64), (1, 20, 24, 18), (2, 17, 17, 17))
"""Channels and size of the images and volumes for trials of a network."""


def check_prepare_is_per_image(model: Model) -> None:
    """Image i of the result depends on image i alone.

    It depends neither on the other images nor on their order.
    """
    images = samples.images(6, SPEC)
    whole = model.preprocess(images.clone())
    others = images.clone()
    others[1:] = 1 - others[1:] / 2
    trials = {
        "the other images of its batch were replaced": model.preprocess(others)[0],
        "it came last instead of first": model.preprocess(images.flip(0))[-1],
        "it came alone": model.preprocess(images[:1].clone())[0],
    }
    for what, found in trials.items():
        ensure(
            found.shape == whole[0].shape and largest_gap(found, whole[0]) < CLOSE,
            f"prepare is not per image: an image's result changed when {what}. Use fixed, public "
            "numbers instead of a batch's mean, deviation or maximum.",
        )


def check_prepare_is_repeatable(model: Model) -> None:
    """Equal images give equal results, and stay unchanged."""
    import torch

    images = samples.images(4, SPEC)
    kept = images.clone()
    state = torch.get_rng_state()
    one, other = model.preprocess(images), model.preprocess(kept.clone())
    ensure(
        torch.equal(images, kept),
        "prepare changed the images that it was given; do not work in place on its argument.",
    )
    ensure(
        torch.equal(one, other) and torch.equal(state, torch.get_rng_state()),
        "prepare drew random numbers, or gave two results for equal images; it must be fixed. "
        "Augmentation is the trainer's.",
    )


def check_prepare_is_finite(model: Model) -> None:
    """One `float32` result for each image, finite even for blank ones."""
    import torch

    images = samples.images(4, SPEC)
    images[0], images[1] = 0, 1
    found = model.preprocess(images)
    ensure(
        len(found) == len(images) and found.dtype == torch.float32,
        f"prepare made {tuple(found.shape)} of {found.dtype} from {len(images)} images; give one "
        "float32 result for each.",
    )
    ensure(
        torch.isfinite(found).all(),
        "prepare gave NaN or infinity for a black, a white or a noise image; guard divisions.",
    )


def check_build_is_repeatable(model: Model) -> str | None:
    """Equal seeds give equal weights, for any state of torch's global generator."""
    import torch

    spec = suitable_spec(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        one = parameters.flatten(build_network(model, spec, 7))
        torch.manual_seed(2)
        again = parameters.flatten(build_network(model, spec, 7))
        other = parameters.flatten(build_network(model, spec, 8))
    ensure(
        torch.equal(one, again),
        "build gave two networks for one seed, so that parties would start apart; draw weights "
        "after torch.manual_seed(seed), inside torch.random.fork_rng.",
    )
    return "every seed gives the same weights" if torch.equal(one, other) else None


def check_build_leaves_the_generator(model: Model) -> None:
    """`build` leaves torch's global generator unchanged."""
    import torch

    spec, state = suitable_spec(model), torch.get_rng_state()
    build_network(model, spec, 7)
    ensure(
        torch.equal(state, torch.get_rng_state()),
        "build moved torch's global generator, and so all later draws; build inside "
        "`with torch.random.fork_rng(devices=[])`.",
    )


def check_logits(model: Model) -> str | None:
    """The network gives finite outputs of its task's shape, for images and volumes.

    The task is one class for each image or, if the network suits it alone, for each pixel.
    """
    import torch

    refused, task = {}, suitable_spec(model).task
    for shape in SHAPES:
        spec = samples.spec(*shape, task=task)
        try:
            net, inputs = build_with_inputs(model, spec)
            with torch.no_grad():
                logits = outputs_of(net.eval(), inputs)
        except (StudyError, RuntimeError, ValueError) as error:
            refused["×".join(map(str, shape))] = error
            continue
        wanted = (len(inputs), *spec.output_shape)
        ensure(
            tuple(logits.shape) == wanted and torch.isfinite(logits).all(),
            f"for images of shape {shape} the network gave {tuple(logits.shape)} values, or some "
            f"that are not finite; it must give logits of shape {wanted}.",
        )
        ensure(
            parameters.trainable(net), "the network has no trainable parameter: nothing to learn."
        )
    ensure(
        len(refused) < len(SHAPES),
        "the network took images of no shape that was tried; the last refusal: "
        f"{next(reversed(refused.values()), None)}",
    )
    return f"does not take images of {', '.join(refused)}" if refused else None


def check_scores_one_image_at_a_time(model: Model) -> None:
    """In evaluation mode, an image's logits do not depend on its batch."""
    net, inputs = build_with_inputs(model, suitable_spec(model))
    ensure(
        not mixes_examples(net.eval(), inputs),
        "in evaluation mode an image's logits changed with the other images of the batch, so that "
        "scores depend on how images are batched; use statistics that are fixed by then.",
    )


def check_mixing_is_visible(model: Model) -> str | None:
    """Only layers known for it mix the examples of a batch.

    This is about training.  Example-level privacy refuses a network by those layers.  Without it,
    mixing is allowed.
    """
    net, inputs = build_with_inputs(model, suitable_spec(model))
    layers = find_batch_mixing_layers(net)
    ensure(
        layers or not mixes_examples(net.train(), inputs),
        "in training mode an image's logits changed with the other images of the batch, in code "
        "that example-level privacy cannot see and would not refuse; compute every example apart.",
    )
    return f"mixes examples in {layers[0]}: no example-level privacy" if layers else None


def check_per_example_gradients(model: Model) -> str | None:
    """Per-example gradients add up to the gradient.

    So clipping them is sound.
    """
    net, inputs = build_with_inputs(model, suitable_spec(model))
    if find_batch_mixing_layers(net):
        return "not tried: the network mixes examples"
    net.train()
    losses, every = (
        seeded_losses(net, inputs, suitable_spec(model)),
        np.arange(len(inputs), dtype=np.int64),
    )
    before = parameters.flatten(net)
    mean_gradient(net, losses, every)
    mean = parameters.flatten_gradients(net, before=before)
    try:
        require_per_example_gradients(net, inputs)
        clipped_sum(net, losses, every, clip=1e9)
    except Exception as error:
        raise ConformanceError(
            f"per-example gradients cannot be taken of this network ({error}); build it of "
            "torch's own layers."
        ) from error
    ensure(
        largest_gap(parameters.flatten_gradients(net, before=before) / len(every), mean) < CLOSE,
        "per-example gradients do not add up to the gradient, so that clipping them would train "
        "something else; build the network of torch's own layers.",
    )
    return None


CHECKS: tuple[Check, ...] = (
    check_prepare_is_per_image,
    check_prepare_is_repeatable,
    check_prepare_is_finite,
    check_build_is_repeatable,
    check_build_leaves_the_generator,
    check_logits,
    check_scores_one_image_at_a_time,
    check_mixing_is_visible,
    check_per_example_gradients,
)
"""Every check of a model."""
