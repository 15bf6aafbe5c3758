"""A network with public weights from a file.

It is an architecture of `timm`, or a program of `torch.export`, which runs no Python of a file.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from attrs import field, frozen
from attrs.validators import deep_iterable, ge, in_, le, matches_re, max_len, min_len

from cohortium.plugin import (
    Dataset,
    DataSpec,
    Model,
    Offer,
    PublicWhitening,
    StudyError,
    hookimpl,
    linear_head,
    require_public_images,
    require_two_axes,
    scale_to_norm,
    whitened_linear_head,
)

if TYPE_CHECKING:
    from attrs import Attribute
    from torch import Tensor, nn

COHORTIUM_API = 1

AXES = 2
"""Axes of an image: height and width."""

MAX_TAPS = 32
MAX_FEATURES = 1 << 20


def _sha256(_: object, attribute: Attribute[str], value: str) -> None:
    if value and not re.fullmatch("[0-9a-fA-F]{64}", value):
        raise ValueError(
            f"'{attribute.name}' has {len(value)} characters; give the 64 hexadecimal digits of a "
            "SHA-256."
        )


@frozen(kw_only=True)
class Backbone:
    """A network with public weights, of which a run trains a small part.

    The weights and the program are files, each with a SHA-256 in the study.  At a hospital, the
    policy allows each file by name.

    Attributes:
        architecture: Name of an architecture of `timm`, without a tag of weights.
        program: A file of `torch.export.save`, instead of an architecture.  The network was
            exported in evaluation mode, with any number of images.
        program_sha256: SHA-256 of the program, in hexadecimal digits.
        weights: A file of safetensors with the weights.
        weights_sha256: SHA-256 of the weights, in hexadecimal digits.
        taps: Modules of the network, or values of its program, whose means over positions are the
            features.  Empty for the network's output.
        has_channels_last: Whether the channels are the last axis of the taps' maps, as in `swin`.
        size: Side of the network's images in pixels.  Other images are resized.
        mean: Mean of each channel of the images, in [0, 1], which is subtracted.
        deviation: Standard deviation of each channel, by which the difference is divided.
        learn: "head": the network stays fixed, and its features are computed once.  "norms": the
            head, and the scales and shifts of the normalisation layers.  "lora": the head, and a
            low-rank addition to each linear layer and each convolution without groups.
        rank: r, the rank of the additions.
        alpha: α.  The additions are scaled by α/r.
        norm: Euclidean norm of every image's features.
        center_on: Public or made-up images of the same kind, such as `phantom`.  Their mean is
            taken off every image's features, before these are scaled to their norm.
        whiten: Degree of whitening by the features of `center_on`.  0 does nothing.  At 1 all
            directions vary equally.
        variance_floor: Directions with less than this share of the greatest variance count as if
            they had it.
        components: Number of directions kept: those in which the features of `center_on` vary most.
            0 keeps every feature.
        private_whitening: Whether to whiten once more, by the second moments of the training
            images.  Sites release these under the run's privacy in the trainer's statistics rounds.
        private_variance_floor: Directions with less than this share of the whole count as if they
            had it.

    Guarantees:
        The program is read as a list of known operations.  Nothing of it is unpickled or evaluated
        as Python.
        The features of an image depend on that image, the two files, these constants and
        `center_on` alone.  So they cost no privacy where the files and `center_on` do not.
        Batch normalisation uses its own constants for every example, in training too.
    """

    architecture: str = field(default="", validator=matches_re(r"[a-z0-9_]{0,100}"))
    program: str = ""
    program_sha256: str = field(default="", validator=_sha256)
    weights: str = ""
    weights_sha256: str = field(default="", validator=_sha256)
    taps: tuple[str, ...] = field(default=(), validator=max_len(MAX_TAPS))
    has_channels_last: bool = False
    size: int = field(default=224, validator=[ge(8), le(2048)])
    mean: tuple[float, ...] = field(
        default=(0.485, 0.456, 0.406),
        validator=[min_len(1), max_len(64), deep_iterable([ge(-10.0), le(10.0)])],
    )
    deviation: tuple[float, ...] = field(
        default=(0.229, 0.224, 0.225),
        validator=[min_len(1), max_len(64), deep_iterable([ge(1e-6), le(1e6)])],
    )
    learn: Literal["head", "norms", "lora"] = field(
        default="head", validator=in_(("head", "norms", "lora"))
    )
    rank: int = field(default=4, validator=[ge(1), le(1024)])
    alpha: float = field(default=4.0, validator=[ge(1e-6), le(1e6)])
    norm: float = field(default=70.0, validator=[ge(1e-6), le(1e6)])
    center_on: Dataset | None = None
    whiten: float = field(default=0.0, validator=[ge(0), le(1)])
    variance_floor: float = field(default=1e-3, validator=[ge(1e-12), le(1)])
    components: int = field(default=0, validator=[ge(0), le(MAX_FEATURES)])
    private_whitening: bool = False
    private_variance_floor: float = field(default=3e-3, validator=[ge(1e-12), le(1)])

    def __attrs_post_init__(self) -> None:
        """Refuse parameters that contradict one another."""
        if self.architecture and self.program:
            raise ValueError("architecture and program exclude each other; give one of them.")
        require_public_images(self.center_on, whiten=self.whiten, components=self.components)
        if self.learn != "head" and (self.center_on is not None or self.private_whitening):
            raise ValueError(
                "center_on and private_whitening are for features that stay fixed; with learn = "
                f"'{self.learn}' the network takes images."
            )
        if len(self.mean) != len(self.deviation):
            raise ValueError(
                f"mean has {len(self.mean)} numbers and deviation {len(self.deviation)}; give one "
                "of each for every channel."
            )

    def preprocess(self, images: Tensor) -> Tensor:
        """Return features (N, D) of images (N, C, H, W), or the images themselves.

        The images are in [0, 1].  If they have another number of channels than the network's, their
        mean is taken for each.

        Raises:
            StudyError: The images are volumes.  Or a file is missing or another one.
            NetworkError: The architecture cannot be made.
        """
        require_two_axes(images.shape[2:], model="backbone")
        if self.learn != "head":
            return images
        body = self._frozen_body.to(images.device)
        blocks = body.all_blocks(images)
        if self.center_on is None:
            rows: Tensor = self._terms.joined(blocks)
            return rows
        return scale_to_norm(self._whitening(blocks, images.shape[1]), self.norm)

    def build(self, spec: DataSpec, seed: int) -> nn.Module:
        """Build the linear layer, or the network with it.

        The layer starts at zero.  The seed draws the first factors of "lora".

        Raises:
            StudyError: A file is missing or another one.
            NetworkError: The architecture cannot be made.
        """
        if self.learn != "head":
            return self._network(spec, seed)
        features, classes = self.dimension, len(spec.classes)
        if self.private_whitening:
            return whitened_linear_head(
                features, classes, floor=self.private_variance_floor, norm=self.norm
            )
        return linear_head(features, classes)

    @property
    def dimension(self) -> int:
        """D, the number of features of an image."""
        return self.components or sum(tap.width for tap in self._taps)

    def _network(self, spec: DataSpec, seed: int) -> nn.Module:
        import torch

        from cohortium_backbone._network import (
            BackboneNetwork,
            Body,
            find_adapters,
            norm_weights,
        )

        program = self._program
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            is_lora = self.learn == "lora"
            adapters = find_adapters(program, self.rank, self.alpha) if is_lora else {}
        trained = norm_weights(program) if self.learn == "norms" else frozenset()
        if not adapters and not trained:
            what = "linear layer or convolution" if is_lora else "normalisation layer with weights"
            raise StudyError(
                f"model.learn is '{self.learn}', and the backbone has no {what}; use 'head'."
            )
        # A caller that builds it without content needs its size alone.
        is_bare = torch.empty(0).device.type == "meta"
        weights = (
            {w.name: torch.empty(w.shape, dtype=w.dtype) for w in program.used_weights}
            if is_bare
            else self._tensors
        )
        body = Body(
            program,
            weights,
            self._taps,
            terms=self._terms,
            largest=self._largest,
            trained=trained,
            adapters=adapters,
        )
        return BackboneNetwork(body, linear_head(self.dimension, len(spec.classes)))

    @cached_property
    def _program(self) -> Any:
        """The network as a list of operations."""
        if self.architecture:
            from cohortium_backbone._architecture import architecture_program

            return architecture_program(self.architecture, self.size)
        if not self.program:
            raise StudyError(
                "model 'backbone' needs model.architecture, a name of timm, or model.program, a "
                "file of torch.export.save."
            )
        from cohortium_backbone._files import read_pinned
        from cohortium_backbone._program import read_program

        content = read_pinned(self.program, self.program_sha256, key="program")
        return read_program(content, f"model.program = '{self.program}'")

    @cached_property
    def _terms(self) -> Any:
        """Constants between images and features."""
        from cohortium_backbone._network import Terms

        shape = self._program.image_shape
        if len(shape) != 1 + AXES or shape[0] is None:
            raise StudyError(
                f"model.program takes tensors of {len(shape) + 1} axes; export a network that "
                "takes images (N, C, H, W)."
            )
        if any(side not in {None, self.size} for side in shape[1:]):
            raise StudyError(
                f"model.program takes images of {shape[1]}×{shape[2]} pixels, and model.size is "
                f"{self.size}; set model.size to the program's."
            )
        if len(self.mean) not in {1, shape[0]}:
            raise StudyError(
                f"model.mean has {len(self.mean)} numbers, and the backbone takes {shape[0]} "
                "channels; give one for each."
            )
        return Terms(
            channels=shape[0],
            size=self.size,
            mean=self.mean,
            deviation=self.deviation,
            norm=self.norm,
            is_last=self.has_channels_last,
        )

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the program's results for one image."""
        from cohortium_backbone._network import result_shapes

        terms = self._terms
        return result_shapes(self._program, (terms.channels, terms.size, terms.size))

    @cached_property
    def _taps(self) -> Any:
        """The values that are features."""
        from cohortium_backbone._network import find_taps

        return find_taps(self._program, self.taps, self._shapes, last=self.has_channels_last)

    @property
    def _largest(self) -> int:
        """Most numbers of a result for one image."""
        import math

        return max(map(math.prod, self._shapes.values()), default=1)

    @cached_property
    def _tensors(self) -> dict[str, Any]:
        """The weights by their names in the file."""
        from cohortium_backbone._files import read_pinned
        from cohortium_backbone._weights import read_weights

        if not self.weights:
            raise StudyError(
                "model 'backbone' needs model.weights, a file of safetensors with the weights."
            )
        content = read_pinned(self.weights, self.weights_sha256, key="weights")
        return read_weights(content, self._program, place=f"model.weights = '{self.weights}'")

    @cached_property
    def _frozen_body(self) -> Any:
        """The network with no trainable parameter."""
        from cohortium_backbone._network import Body

        return Body(
            self._program, self._tensors, self._taps, terms=self._terms, largest=self._largest
        )

    @cached_property
    def _whitening(self) -> PublicWhitening:
        """Whitening by the features of `center_on`."""
        assert self.center_on is not None
        return PublicWhitening(
            center_on=self.center_on,
            blocks=self._frozen_body.all_blocks,
            whiten=self.whiten,
            floor=self.variance_floor,
            components=self.components,
        )


@hookimpl
def cohortium_models() -> list[Offer[Model]]:
    """Offer `backbone`."""
    summary = "A network with public weights from a file; its head, norms or LoRA learn."
    return [Offer("backbone", Backbone, summary, local_parameters=("program", "weights"))]
