"""A program as a network: its features, and the parameters that a run trains."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.nn import functional

from cohortium.plugin import NetworkError, StudyError, did_you_mean, scale_to_norm
from cohortium_backbone._graph import InputDevice, Program, Step, Value
from cohortium_backbone._operations import CONVOLUTIONS, NORM_WEIGHTS, NORMALISATIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

MAX_NUMBERS: Final = 1 << 27
"""Most numbers in an intermediate result of one image: 512 MiB."""

NUMBERS_AT_ONCE: Final = 1 << 25
"""Most numbers in an intermediate result of a batch without gradients: 128 MiB."""

Learn = Literal["head", "norms", "lora"]


@frozen(eq=False)
class Tap:
    """A value of a program whose means over positions are features.

    Attributes:
        value: Its name in the program.
        width: D, the number of its channels.
    """

    value: str
    width: int


def find_taps(
    program: Program, names: Sequence[str], shapes: Mapping[str, tuple[int, ...]], *, last: bool
) -> tuple[Tap, ...]:
    """Return the values of a program that `names` name.

    A name is the path of a module, whose last result counts, or the name of a value.

    Args:
        program: The program.
        names: Names of modules or values.  Empty for the program's output.
        shapes: Shape of each value for one image.
        last: Whether the channels are the last axis of maps.

    Raises:
        StudyError: There is no such module or value, or it has no channels.
    """
    by_module: dict[str, str] = {}
    for step in program.steps:
        result = step.outputs[0] if step.outputs else None
        if result is not None and result in shapes:
            by_module |= dict.fromkeys(step.modules, result)
    if not names and len(program.outputs) != 1:
        raise StudyError(
            f"model 'backbone': its program has {len(program.outputs)} outputs; name one or more "
            "of its modules or values in model.taps."
        )
    found = []
    for name in names or program.outputs:
        value = by_module.get(name, name)
        if value not in shapes:
            known = [*by_module, *shapes]
            raise StudyError(
                f"model.taps names '{name}', and the backbone has no such module or value; "
                f"{did_you_mean(name, known)}"
            )
        shape = shapes[value]
        if len(shape) not in {2, 3, 4}:
            raise StudyError(
                f"model.taps names '{name}', whose values have {len(shape)} axes; name one with "
                "vectors, tokens or maps."
            )
        found.append(Tap(value, shape[1] if len(shape) == 4 and not last else shape[-1]))  # noqa: PLR2004
    return tuple(found)


def result_shapes(program: Program, image: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a program for one image.

    Nothing is computed.

    Args:
        program: The program.
        image: Channels and size of the image.

    Raises:
        StudyError: The program takes no such images, or a result is too large.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    with torch.device("meta"), torch.no_grad():
        values = {w.value: torch.empty(w.shape, dtype=w.dtype) for w in program.weights}
        images = torch.empty(1, *image)

        def note(name: str, value: Tensor) -> Tensor:
            shapes[name] = tuple(value.shape)
            if value.numel() > MAX_NUMBERS:
                raise StudyError(
                    f"model 'backbone' has a result of {value.numel():,} numbers for one image, "
                    f"more than {MAX_NUMBERS:,}; lower model.size."
                )
            return value

        try:
            run(program, images, values, on_result=note)
        except (StudyError, MemoryError):
            raise
        except Exception as error:
            why = " ".join(str(error).split())[:200]
            raise StudyError(
                f"model 'backbone' cannot compute an image of {list(image)} ({why}); set "
                "model.size to the size that it was exported for."
            ) from error
    return shapes


def run(
    program: Program,
    images: Tensor,
    weights: Mapping[str, Tensor],
    *,
    adapted: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    kept: Collection[str] = (),
    on_result: Callable[[str, Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Run a program.

    Args:
        program: The program.
        images: Shape (N, C, H, W).  They are not changed.
        weights: The program's weights by value.
        adapted: For the results of some layers, a function of the layer's input that is added.
        kept: Names of values to return.
        on_result: Called with each tensor that a step gives, before later steps use it.

    Returns:
        The values that `kept` names, as they were before a later step could change them.
    """
    values: dict[str, Any] = {**weights, program.images: images.clone()}
    found: dict[str, Tensor] = {}
    for step, over in zip(program.steps, program.last_uses, strict=True):
        given = {name: _resolved(each, values, images) for name, each in step.arguments.items()}
        positional = list(given.values())[: step.num_positional]
        named = dict(list(given.items())[step.num_positional :])
        result = step.call(*positional, **named)
        results = (result,) if step.is_single else tuple(result)
        for name, value in zip(step.outputs, results, strict=True):
            if name is None:
                continue
            if adapted is not None and name in adapted:
                value = value + adapted[name](given["input"])  # noqa: PLW2901
            if on_result is not None and isinstance(value, Tensor):
                on_result(name, value)
            if name in kept:
                found[name] = value.clone()
            values[name] = value
        for name in over:
            if name not in weights:
                values.pop(name, None)
    return found


def _resolved(given: Any, values: Mapping[str, Any], images: Tensor) -> Any:
    if isinstance(given, Value):
        return values[given.name]
    if isinstance(given, list):
        return [_resolved(each, values, images) for each in given]
    return images.device if given is InputDevice else given


class Adapter(nn.Module):
    """A low-rank addition to a layer: α/r · B(A(x)), zero at first (Hu et al. 2022).

    `down` is A, a layer of the same kind with r outputs.  `up` is B.
    """

    def __init__(self, down: nn.Module, up: nn.Module, scale: float) -> None:
        super().__init__()
        self.down, self.up, self._scale = down, up, scale

    def forward(self, x: Tensor) -> Tensor:
        """Return the addition to the layer's output for its input."""
        added: Tensor = self.up(self.down(x))
        return added * self._scale


def find_adapters(program: Program, rank: int, alpha: float) -> dict[str, Adapter]:
    """Return an adapter for each linear layer and convolution without groups.

    They are keyed by the layer's result.  Their weights are drawn from torch's generator.
    """
    weights = {weight.value: weight for weight in program.weights}
    found = {}
    for step in program.steps:
        given = step.arguments.get("weight")
        weight = weights.get(given.name) if isinstance(given, Value) else None
        shape = () if weight is None else weight.shape
        name = step.outputs[0]
        adapter = None if name is None else _adapter(step, shape, rank)
        if adapter is not None and name is not None:
            down, up = adapter
            nn.init.zeros_(up.weight)
            found[name] = Adapter(down, up, alpha / rank)
    return found


def _adapter(step: Step, shape: tuple[int, ...], rank: int) -> tuple[nn.Module, Any] | None:
    if step.kind == "linear" and len(shape) == 2:  # noqa: PLR2004 - a matrix
        outputs, inputs = shape
        return nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False)
    axes = CONVOLUTIONS.get(step.kind)
    if axes is None or len(shape) != 2 + axes or step.arguments.get("groups", 1) != 1:
        return None
    kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    options = {
        key: tuple(given) if isinstance(given, list) else given
        for key in ("stride", "padding", "dilation")
        if (given := step.arguments.get(key)) is not None
    }
    # torch lists one number for all axes.
    options = {k: v[0] if isinstance(v, tuple) and len(v) == 1 else v for k, v in options.items()}
    down = kind(shape[1], rank, shape[2:], bias=False, **options)
    return down, kind(rank, shape[0], 1, bias=False)


def norm_weights(program: Program) -> frozenset[str]:
    """Return the values of the scales and shifts of normalisation layers."""
    weights = {weight.value for weight in program.weights}
    return frozenset(
        given.name
        for step in program.steps
        if step.kind in NORMALISATIONS
        for key in NORM_WEIGHTS
        if isinstance(given := step.arguments.get(key), Value) and given.name in weights
    )


class Body(nn.Module):
    """A program with its weights, from images to features.

    Its weights are frozen parameters, apart from those in `trained`.  No buffer of it moves in
    training, and no layer of it has a training mode.  So batch normalisation uses its own constants
    for every example, whether or not `train()` is called.
    """

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, Tensor],
        taps: tuple[Tap, ...],
        *,
        terms: Terms,
        largest: int,
        trained: Collection[str] = (),
        adapters: Mapping[str, Adapter] | None = None,
    ) -> None:
        super().__init__()
        self._program, self._taps, self._terms, self._largest = program, taps, terms, largest
        self._keys = {
            weight.value: weight.name.replace(".", "/") for weight in program.used_weights
        }
        self.weights = nn.ParameterDict()
        for weight in program.used_weights:
            is_trained = weight.value in trained
            tensor = weights[weight.name]
            self.weights[self._keys[weight.value]] = nn.Parameter(
                tensor.clone() if is_trained else tensor, requires_grad=is_trained
            )
        self.adapters = nn.ModuleDict(dict(adapters or {}))

    def forward(self, images: Tensor) -> Tensor:
        """Return features (N, D) of one norm for images (N, C, H, W) in [0, 1]."""
        return self._terms.joined(self.blocks(images))

    def blocks(self, images: Tensor) -> list[Tensor]:
        """Return the means of each tap over its positions, (N, D_i)."""
        weights = {value: self.weights[key] for value, key in self._keys.items()}
        before = {value: tensor._version for value, tensor in weights.items()}  # noqa: SLF001
        found = run(
            self._program,
            self._terms.inputs(images),
            weights,
            adapted=dict(self.adapters.items()),
            kept={tap.value for tap in self._taps},
        )
        if any(weights[value]._version != version for value, version in before.items()):  # noqa: SLF001
            raise NetworkError(
                "the program of model 'backbone' changes its own weights as it runs; export the "
                "network in evaluation mode."
            )
        return [self._terms.pooled(found[tap.value]) for tap in self._taps]

    def all_blocks(self, images: Tensor) -> list[Tensor]:
        """Return the blocks of any number of images, without gradients."""
        if torch.compiler.is_compiling():
            # A traced program has no loop over an unknown number of images.  Its caller chooses
            # that number.
            return self.blocks(images)
        with torch.no_grad():
            step = max(1, NUMBERS_AT_ONCE // self._largest)
            parts = [self.blocks(part) for part in torch.split(images, step) if len(part)]
        if not parts:
            return [images.new_empty(0, tap.width) for tap in self._taps]
        return [torch.cat(block) for block in zip(*parts, strict=True)]


@frozen
class Terms:
    """Constants between images and features.

    Attributes:
        channels: Channels that the program takes.
        size: Side of its images in pixels.
        mean: Mean of each channel.
        deviation: Standard deviation of each channel.
        norm: Euclidean norm of every image's features.
        is_last: Whether the channels are the last axis of maps.
    """

    channels: int
    size: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    norm: float
    is_last: bool

    def inputs(self, images: Tensor) -> Tensor:
        """Return the program's images for images (N, C, H, W) in [0, 1]."""
        if images.shape[1] != self.channels:
            images = images.mean(1, keepdim=True).expand(-1, self.channels, -1, -1)
        if images.shape[2:] != (self.size, self.size):
            images = functional.interpolate(
                images,
                (self.size, self.size),
                mode="bilinear",
                antialias=True,
                align_corners=False,
            )
        mean, deviation = (
            torch.tensor(values, dtype=images.dtype, device=images.device).view(1, -1, 1, 1)
            for values in (self.mean, self.deviation)
        )
        return (images - mean) / deviation

    def pooled(self, values: Tensor) -> Tensor:
        """Return the mean over positions, (N, D), of vectors, tokens or maps."""
        if values.ndim == 2:  # noqa: PLR2004 - vectors
            return values
        if values.ndim == 3:  # noqa: PLR2004 - tokens
            return values.mean(1)
        return values.mean((1, 2)) if self.is_last else values.mean((2, 3))

    def joined(self, blocks: Sequence[Tensor]) -> Tensor:
        """Return blocks side by side, each of one norm, with `norm` in all."""
        each = self.norm / math.sqrt(len(blocks))
        return torch.cat([scale_to_norm(block, each) for block in blocks], dim=1)


class BackboneNetwork(nn.Module):
    """A body and a linear layer over its features."""

    def __init__(self, body: Body, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes) of images (N, C, H, W) in [0, 1]."""
        logits: Tensor = self.head(self.body(images))
        return logits
