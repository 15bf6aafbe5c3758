"""A network or its features, trained on public images, without privacy cost.

The images are public or made up.  Tang et al. 2023 (arXiv 2306.06076) train on images of random
processes.  The cells of `phantom` are
procedural, too, and nearer to the images of hospitals.
"""

from __future__ import annotations

import copy
import hashlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attrs import field, fields, frozen
from attrs.validators import ge, in_, le, lt

from cohortium.plugin import (
    Dataset,
    DataSpec,
    FeatureWhitening,
    Model,
    Offer,
    StudyError,
    hookimpl,
    linear_head,
    part_shares,
    require_two_axes,
    scale_to_norm,
    to_unit_range,
    whitened_linear_head,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

COHORTIUM_API = 1

MAX_STAGES = 64
"""Most stages of a network."""

BLANK_SIDE = 32
"""Side of the blank image that shows how many features the network has."""

MAX_REFERENCES = 1500
"""Images from which the variation of features is computed.  More would improve it little."""


FEATURE_PARAMETERS = (
    "trainable", "stages", "squares", "parts", "norm", "whiten", "variance_floor", "components",
    "private_whitening", "private_variance_floor",
)  # fmt: skip
"""Parameters without a meaning for a network that is trained on masks."""


@frozen(kw_only=True)
class Pretrained:
    """A convolutional network that is trained on `images` with their labels, once.

    The run then trains a new linear head, from zero, and the layers that `trainable` names.

    Where `images` have masks, the prepared images are the shares of the masks' classes in each
    pixel.  They are for the `parts` of `descriptor`, and no head is trained on them.

    Attributes:
        images: Public or made-up images with labels of any kind, such as `phantom`.  Or images with
            masks, such as `phantom-fields`.
        network: The model that is trained: `dpresnet`, `resnet9` or `resnet18`, and for masks
            `unet`.  Without one, a small network of the plugin's own is trained, for labels alone.
        trainable: "head": the network stays fixed.  The head sees the averages of its last maps
            over rings and quarter turns, at one norm.  "norms": the head, and the scales and shifts
            of the normalisation layers.  "everything": the training starts from the network.
        stages: Number of the network's last stages whose maps are averaged.  The own network has
            four stages, `dpresnet` three, `resnet9` two and `resnet18` four.  Earlier maps show
            finer texture.
        squares: Whether the features have averages of squared maps, too.  They tell many weak
            answers of a kernel from few strong ones.
        parts: A model whose prepared images are the shares of parts in each pixel, such as this one
            on images with masks.  The maps are averaged in each part, too.
        width: Channels of the own network's first convolution.  The last has four times as many.
        epochs: Passes over `images`.
        seed: Seed of the network's training.
        norm: Euclidean norm of every image's features.
        whiten: Degree of whitening, after the mean is taken off.  It scales directions in which the
            features of `images` vary much down to those in which they vary little. 0 does nothing.
            At 1 all directions vary equally.
        variance_floor: Directions with less than this share of the greatest variance count as if
            they had it.
        components: Number of directions kept: those in which the features of `images` vary most. 0
            keeps every feature.
        private_whitening: Whether to whiten once more, by the second moments of the training
            images.  Sites release these under the run's privacy in the trainer's statistics rounds.
        private_variance_floor: Directions with less than this share of the whole count as if they
            had it.
        weights: A file that keeps the trained network.  If the file exists, the network is read
            from it.  Sites of a deployment must have the same file, because training differs
            between machines.

    Guarantees:
        The trained network depends on these constants and on `images` alone.  So it costs no
        privacy where `images` do not.  The features of an image depend on that image, too.  The
        second moments that `private_whitening` takes from training images reach the head through
        clipped gradients alone.
    """

    images: Dataset
    network: Model | None = None
    trainable: Literal["head", "norms", "everything"] = field(
        default="head", validator=in_(("head", "norms", "everything"))
    )
    stages: int = field(default=1, validator=[ge(1), le(MAX_STAGES)])
    squares: bool = False
    parts: Model | None = None
    width: int = field(default=32, validator=[ge(1), le(1 << 14)])
    epochs: int = field(default=6, validator=[ge(1), le(1000)])
    seed: int = field(default=1, validator=[ge(0), lt(1 << 63)])
    norm: float = field(default=70.0, validator=[ge(1e-6), le(1e6)])
    whiten: float = field(default=0.0, validator=[ge(0), le(1)])
    variance_floor: float = field(default=1e-3, validator=[ge(1e-12), le(1)])
    components: int = field(default=0, validator=[ge(0), le(MAX_REFERENCES)])
    private_whitening: bool = False
    private_variance_floor: float = field(default=3e-3, validator=[ge(1e-12), le(1)])
    weights: str = ""

    def __attrs_post_init__(self) -> None:
        """Refuse features of a network that takes images."""
        if (self.whiten or self.private_whitening) and self.trainable != "head":
            raise ValueError(
                "whiten and private_whitening are for features; with trainable = "
                f"'{self.trainable}' the network takes images."
            )
        shaped = self.stages > 1 or self.squares or self.parts is not None or self.components
        if shaped and self.trainable != "head":
            raise ValueError(
                "stages, squares, parts and components are for features; with trainable = "
                f"'{self.trainable}' the network takes images."
            )

    def preprocess(self, images: Tensor) -> Tensor:
        """Return features (N, F) of images (N, C, H, W), or network inputs.

        F is `components`, or three times the number of averaged maps, or six times with `squares`.
        With K `parts`, maps count 3 + K times in place of three.
        After a training on masks of K classes, the result is the classes' shares in each pixel,
        (N, K, H, W).

        The images are in [0, 1].  If they have another number of channels than `images`, they are
        converted to grey.

        Raises:
            StudyError: The images are volumes.  Or the network is trained on masks, and a parameter
                is for features.  Or `parts` gives another shape than one share for each pixel.
        """
        require_two_axes(images.shape[2:], model="pretrained")
        net, learned = self._trained
        if _has_masks(learned):
            from cohortium_pretrained._network import pixel_shares

            return pixel_shares(net, self._inputs(images))
        if self.trainable != "head":
            return self._inputs(images)
        rows = self._features(images)
        if self.whiten or self.components:
            rows = self._reference([rows])
        return scale_to_norm(rows, self.norm)

    def build(self, spec: DataSpec, seed: int) -> nn.Module:  # noqa: ARG002
        """Build the linear layer, or the network with it.

        The layer starts at zero and needs no seed.

        Raises:
            StudyError: The network is trained on masks.
        """
        import torch
        from torch import nn

        # A caller that builds it without content needs its size alone, and has not agreed to a
        # training.
        is_bare = torch.empty(0).device.type == "meta"
        trained, learned = (self._untrained(spec), spec) if is_bare else self._trained
        if _has_masks(learned):
            raise StudyError(
                "model 'pretrained': trained on masks, it gives the parts of an image and no "
                "answers; name it as the parts of model 'descriptor', or give images with labels."
            )
        features, classes = trained.head.in_features, len(spec.classes)
        if self.trainable == "head":
            require_two_axes(spec.size, model="pretrained")
            blank = trained.head.weight.new_zeros(1, learned.channels, BLANK_SIDE, BLANK_SIDE)
            features = self.components or self._pooled(trained, blank, blank).shape[1]
        if self.private_whitening:
            return whitened_linear_head(
                features, classes, floor=self.private_variance_floor, norm=self.norm
            )
        head = linear_head(features, classes)
        if self.trainable == "head":
            return head
        net: nn.Module = copy.deepcopy(trained)
        net.requires_grad_(self.trainable == "everything")
        for layer in net.modules():
            if isinstance(layer, nn.GroupNorm):
                layer.requires_grad_()
        net.head = head
        return net.train()

    def _features(self, images: Tensor) -> Tensor:
        """Return the pooled maps of the network, (N, F), not normalised."""
        return self._pooled(self._trained[0], self._inputs(images), images)

    def _pooled(self, net: Any, inputs: Tensor, images: Tensor) -> Tensor:
        """Return the pooled maps of `inputs`, which are the network's inputs for `images`."""
        from cohortium_pretrained._network import pooled

        shares = None if self.parts is None else part_shares(self.parts, images, model="pretrained")
        return pooled(net, inputs, shares, stages=self.stages, has_squares=self.squares)

    @cached_property
    def _reference(self) -> FeatureWhitening:
        """Variation of the features of `images`."""
        splits = self.images.load()
        pixels = splits.train.images
        some = to_unit_range(pixels[:: -(-len(pixels) // MAX_REFERENCES)], splits.spec)
        return FeatureWhitening.of(
            [self._features(some)],
            power=self.whiten / 2,
            floor=self.variance_floor,
            components=self.components,
        )

    def _inputs(self, images: Tensor) -> Tensor:
        """Return the network's inputs."""
        channels = self._trained[1].channels
        if images.shape[1] != channels:
            images = images.mean(1, keepdim=True).expand(-1, channels, -1, -1)
        return self._scaled(images)

    def _scaled(self, images: Tensor) -> Tensor:
        """Return the network's inputs, from images in its number of channels."""
        if self.network is None:
            return images.sub(0.5).div(0.5)
        return self.network.preprocess(images)

    @cached_property
    def _trained(self) -> tuple[Any, DataSpec]:  # attrs keeps annotations, to be importable
        """The trained network and the public facts about `images`.

        It comes from `weights` or from a training on `images`.

        Raises:
            StudyError: The images have masks, and a parameter is for features.
        """
        import torch

        from cohortium.plugin import pretrain

        splits = self.images.load()
        spec = splits.spec
        if _has_masks(spec) and (given := self._feature_parameters):
            raise StudyError(
                f"model 'pretrained': {' and '.join(given)} would change features, and images with "
                "masks give none; leave it out."
            )
        net = self._untrained(spec)
        path = Path(self.weights) if self.weights else None
        if path is not None and path.is_file():
            return self._read(net, path), spec
        pretrain(
            net,
            to_unit_range(splits.train.images, spec),
            torch.from_numpy(splits.train.labels).long(),
            prepare=self._scaled,
            epochs=self.epochs,
            seed=self.seed,
        )
        if path is not None:
            self._write(net, path)
        return net, spec

    @property
    def _feature_parameters(self) -> list[str]:
        """Names of the parameters of features that have another value than their default."""
        return [
            a.name
            for a in fields(Pretrained)
            if a.name in FEATURE_PARAMETERS and getattr(self, a.name) != a.default
        ]

    def _untrained(self, spec: DataSpec) -> Any:
        """Build the network before its training, for images of `spec`."""
        import torch

        from cohortium.plugin import build_network
        from cohortium_pretrained._network import (
            Network,
            require_feature_maps,
            require_pixel_outputs,
        )

        if self.network is None and _has_masks(spec):
            raise StudyError(
                "model 'pretrained': its own network gives labels, and its images have masks; set "
                "network = 'unet'."
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if self.network is None:
                net: nn.Module = Network(spec.channels, len(spec.classes), self.width)
            else:
                net = build_network(self.network, spec, self.seed)
        if not _has_masks(spec):
            require_feature_maps(net)
        elif torch.empty(0).device.type != "meta":
            require_pixel_outputs(net, spec)
        return net

    @property
    def _named(self) -> str:
        """Hash of the inputs of the training of the weights."""
        learned = (self.images, self.network, self.width, self.epochs, self.seed)
        return hashlib.sha256(repr(learned).encode()).hexdigest()

    def _read(self, net: Any, path: Path) -> Any:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                if (file.metadata() or {}).get("trained") != self._named:
                    raise StudyError(
                        f"{path} holds weights that were trained otherwise than model 'pretrained' "
                        "asks; name another file, or take that one away."
                    )
                net.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (SafetensorError, RuntimeError, OSError) as error:
            raise StudyError(f"{path} is not a file of this network's weights: {error}.") from error
        return net.eval()

    def _write(self, net: Any, path: Path) -> None:
        from safetensors.torch import save

        from cohortium.plugin import atomic_write

        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, save(net.state_dict(), metadata={"trained": self._named}))


def _has_masks(spec: DataSpec) -> bool:
    """Return whether the images of `spec` have a class for each pixel."""
    return len(spec.output_shape) > 1


@hookimpl
def cohortium_models() -> list[Offer[Model]]:
    """Offer `pretrained`."""
    summary = "A network or its features, learned on public images."
    return [Offer("pretrained", Pretrained, summary, local_parameters=("weights",))]
