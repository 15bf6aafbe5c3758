"""A study's network: built equally everywhere, tried out, and named in errors.

The network may be any user's code. All code that builds a network for a study uses `build_network`.
All code that calls a network for a study is inside `blame_network`, so a fault of it becomes a
sentence that names it.
"""

from __future__ import annotations

import contextlib
import inspect
import traceback
from typing import TYPE_CHECKING, Any

from cohortium.catalog.discovery import discover
from cohortium.catalog.part_results import require_result
from cohortium.errors import BrokenNetworkError, CohortiumError, NetworkError
from cohortium.third_party import describe_fault, is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from cohortium.data.examples import DataSpec
    from cohortium.roles.protocols import Model


def name_of(model: Model) -> str:
    """Return the name of a model in a sentence.

    It is the code that its study names, its plugin, or its class.
    """
    kind = type(model)
    for offering in discover().entries:
        offer = offering.offer
        if offering.role == "model" and offer.factory is kind:
            code = getattr(model, offer.code, "") if offer.code else ""
            return code or f"model '{offer.name}'"
    return f"{kind.__module__}:{kind.__qualname__}"


def build_network(model: Model, spec: DataSpec, seed: int) -> nn.Module:
    """Build the network of `model`, with weights drawn from `seed`.

    The network is equal at every party. Layers whose shapes depend on their first input (such as
    `torch.nn.LazyLinear`) get the shapes, and their weights, from a blank image.

    Args:
        model: Model that builds the network.
        spec: Public facts about the data.
        seed: Seed of the weights.

    Raises:
        NetworkError: The result is no network, or a lazy layer cannot be given its shape.
    """
    import torch

    net: Any = model.build(spec, seed)
    if not isinstance(net, torch.nn.Module):
        raise NetworkError(f"{name_of(model)} gives a {type(net).__name__}, and no network.")
    if _lazy(net):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _materialise(model, net, model.preprocess(torch.zeros(2, *spec.shape)))
    return net


def _lazy(net: nn.Module) -> list[str]:
    from torch.nn.parameter import is_lazy

    named = (*net.named_parameters(), *net.named_buffers())
    return [name for name, tensor in named if is_lazy(tensor)]


def _materialise(model: Model, net: nn.Module, blank: Tensor) -> None:
    import torch

    for mode in (False, True):
        if _lazy(net):
            with (
                restored_after(net),
                blame_network(model, net, "cannot take", blank),
                torch.no_grad(),
            ):
                net.train(mode)
                net(blank)
    if left := _lazy(net):
        raise NetworkError(
            f"{name_of(model)} has a lazy layer that no image reaches, so that '{left[0]}' never "
            "gets a shape; use it in forward, or take it away."
        )


def preprocess_probe(model: Model, images: Tensor) -> Tensor:
    """Return the network's input for made-up `images`, shape (B, …).

    Raises:
        PluginError: The model returns no tensor with a row for each image, or changes its argument.
    """
    import torch

    before = images.clone()
    found: object = model.preprocess(images)
    is_right = isinstance(found, torch.Tensor) and found.ndim > 1 and len(found) == len(images)
    wanted = f"a tensor with a row for each of {len(images)} images"
    require_result(model, "preprocess", found, is_right, wanted)
    assert isinstance(found, torch.Tensor)
    if not torch.equal(images, before):
        raise NetworkError(
            f"{name_of(model)} changes the images that its preprocess receives; use images - mean "
            "in place of images.sub_(mean)."
        )
    return found


def check_output_shape(model: Model, net: nn.Module, images: Tensor, spec: DataSpec) -> None:
    """Refuse a network that cannot be trained on the study's images.

    The check shows it made-up images.

    Args:
        model: Model of the network.
        net: The network, left as it was except for its gradients.
        images: A few different preprocessed inputs, shape (B, …), on the network's device.
        spec: Public facts about the data.

    Raises:
        NetworkError: The network cannot be trained. The message names the network and a remedy.
    """
    import numpy as np
    import torch

    _require_trainable(model, net)
    _require_called_with_images(model, net)
    with restored_after(net), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for mode in (False, True):
            if net.train(mode) is not net:
                raise NetworkError(
                    f"{name_of(model)} has a train() that gives None; end it in return self."
                )
            shown = images if mode else images[:2]
            with blame_network(model, net, "cannot take", shown):
                found = net(shown)
                _require_outputs(model, found, len(shown), spec)
        if not found.requires_grad:
            raise NetworkError(
                f"{name_of(model)} gives outputs on which no trainable parameter has a bearing; "
                "take detach() or no_grad() out of its forward."
            )
        rng = np.random.default_rng(0)
        labels = torch.from_numpy(spec.task.sample_labels(spec.size, len(images), rng))
        with blame_network(model, net, "has no gradient for", images):
            torch.autograd.backward(spec.task.losses(found, labels.to(images.device)).mean())
    net.zero_grad(set_to_none=True)


def require_rows(model: Model, outputs: Tensor, number: int, output_shape: tuple[int, ...]) -> None:
    """Refuse outputs that do not have `output_shape` for each of `number` images.

    The images are those of a batch during a run.

    Raises:
        BrokenNetworkError: The outputs have another shape. A network may squeeze a batch of one
            away.
    """
    if tuple(outputs.shape) != (number, *output_shape):
        raise BrokenNetworkError(
            f"{name_of(model)} gives outputs of shape {tuple(outputs.shape)} for a batch of "
            f"{number}; keep the batch as the first dimension, with flatten(1) in place of "
            "squeeze()."
        )


def accepts_single_image(net: nn.Module, images: Tensor, output_shape: tuple[int, ...]) -> bool:
    """Return whether `net` can be trained on a batch of one image.

    The image is one of the preprocessed `images`, shape (B, …). Batch normalisation cannot if it
    sees one value per channel, nor can a network that squeezes its batch away.
    """
    import torch

    with restored_after(net), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        net.train()
        try:
            found = net(images[:1])
        except Exception:  # noqa: BLE001 - larger batches have passed `check_output_shape`
            return False
    return tuple(found.shape) == (1, *output_shape)


@contextlib.contextmanager
def restored_after(net: nn.Module) -> Iterator[None]:
    """Restore the modes and buffers of `net` after the block.

    It restores replaced buffers as well.
    """
    from torch.nn.parameter import is_lazy

    modes = [(layer, layer.training) for layer in net.modules()]
    buffers = [
        (layer, name, buffer, buffer.clone())
        for layer in net.modules()
        for name, buffer in layer.named_buffers(recurse=False)
        if not is_lazy(buffer)
    ]
    try:
        yield
    finally:
        for layer, mode in modes:
            layer.training = mode
        for layer, name, buffer, before in buffers:
            buffer.detach().copy_(before)
            setattr(layer, name, buffer)


@contextlib.contextmanager
def blame_network(
    model: Model, net: nn.Module, fails: str, images: Tensor | None = None
) -> Iterator[None]:
    """Raise one sentence, which names the network, for its errors.

    The errors are those of `net` in the block.

    Args:
        model: Model of the network.
        net: The network.
        fails: Description of the fault, as in "cannot take".
        images: Images that the network is shown, before a run. None during a run, in which only an
            error raised inside `net`, or in its backward pass, counts as its own.

    Raises:
        NetworkError: The error was raised before a run.
        BrokenNetworkError: The error was raised during a run.
    """
    try:
        yield
    except (CohortiumError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        if is_out_of_memory(error) or (images is None and not _is_own(error, net)):
            raise
        name, why = name_of(model), describe_fault(error)
        if images is None:
            raise BrokenNetworkError(f"{name} {fails}: {why}.") from error
        raise NetworkError(
            f"{name} {fails} batches of {tuple(images.shape)}: {why}; change it, or its arguments."
        ) from error


def _is_own(error: BaseException, net: nn.Module) -> bool:
    """Return whether `error` is from a call of `net` or a backward pass."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [str(frame.f_globals.get("__name__", "")) for frame in frames]
    return any(
        name.startswith("torch.autograd")
        or (name.startswith("torch.") and frame.f_locals.get("self") is net)
        for frame, name in zip(frames, names, strict=True)
    )


def _require_trainable(model: Model, net: nn.Module) -> None:
    if any(parameter.requires_grad and parameter.numel() for parameter in net.parameters()):
        return
    frozen = next(iter(net.parameters()), None) is not None
    why = "all of its parameters have requires_grad = False" if frozen else "it has no parameters"
    raise NetworkError(f"{name_of(model)} cannot be trained: {why}; leave it some that can move.")


def _require_called_with_images(model: Model, net: nn.Module) -> None:
    """Refuse a forward that needs more or less than a batch of images."""
    try:
        signature = inspect.signature(net.forward)
    except (TypeError, ValueError):  # not Python's
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise NetworkError(
            f"{name_of(model)} cannot be called with a batch of images alone (forward{signature}: "
            f"{error}); give each other parameter a default."
        ) from error


def _advice_on_outputs(model: Model, wanted: tuple[int, ...]) -> str:
    """Return what makes the outputs of a model have the shape `wanted`."""
    own = "its factory receives their number as the parameter 'classes'"
    catalog, kind = discover(), type(model)
    offers = [e.offer for e in catalog.entries if e.role == "model" and e.offer.factory is kind]
    if not offers or offers[0].code:
        return own
    if len(wanted) > 2:  # noqa: PLR2004 - (images, classes, *size)
        return "take a model with an output at each pixel, such as 'unet'"
    return "take a model with an output for each image, such as 'cnn'"


def _require_outputs(model: Model, found: object, number: int, spec: DataSpec) -> None:
    """Refuse outputs other than finite numbers of the task's shape."""
    import torch

    wanted = (number, *spec.output_shape)
    axes = "images, classes" if len(wanted) == 2 else "images, classes, size"  # noqa: PLR2004
    each = f"one number for each of the {len(spec.classes)} classes"
    each += "" if len(wanted) == 2 else ", at each pixel"  # noqa: PLR2004
    if not isinstance(found, torch.Tensor):
        kind = type(found).__name__
        raise NetworkError(
            f"{name_of(model)} gives a {kind} for a batch of images, and not the tensor of its "
            f"logits, shape ({axes}); return that alone."
        )
    if tuple(found.shape) != wanted:
        raise NetworkError(
            f"{name_of(model)} gives outputs of shape {tuple(found.shape)} for {number} images, "
            f"and not {wanted}: {each}; {_advice_on_outputs(model, wanted)}."
        )
    if not found.is_floating_point():
        raise NetworkError(
            f"{name_of(model)} gives outputs of {found.dtype}; logits are real floating-point "
            "numbers."
        )
    if not bool(torch.isfinite(found).all()):
        raise NetworkError(
            f"{name_of(model)} gives NaN or infinity for made-up images before any training; look "
            "for a division by zero, or a logarithm or root of a negative number."
        )
