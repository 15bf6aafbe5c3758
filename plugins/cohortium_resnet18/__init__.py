"""ResNet-18 (He et al. 2016) with GroupNorm: the network that PriMIA trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrs import field, frozen
from attrs.validators import ge, in_, le

from cohortium.plugin import DataSpec, Model, Offer, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

COHORTIUM_API = 1


@frozen(kw_only=True)
class ResNet18:
    """Eight residual blocks of two 3×3 convolutions.

    It has 11.2 M parameters at width 64.  Images have two axes or three.

    Attributes:
        width: Channels of the first stage.  The last has eight times as many.
        stem: "small": one 3×3 convolution, for images of some 28 pixels.  "large": 7×7 with stride
            2, then max-pooling, as for images of 224 pixels.
        norm: "group" (32 groups, or as many as divide the channels) or "batch", which example-level
            privacy refuses.
    """

    width: int = field(default=64, validator=[ge(1), le(1 << 14)])
    stem: Literal["small", "large"] = field(default="small", validator=in_(("small", "large")))
    norm: Literal["group", "batch"] = field(default="group", validator=in_(("group", "batch")))

    def preprocess(self, images: Tensor) -> Tensor:
        """Scale intensities from [0, 1] to [-1, 1], by public constants.

        PriMIA exchanges the data's mean and deviation, and may add noise.  With a norm after the
        first convolution they matter little, and constants cost no privacy.
        """
        return images.sub(0.5).div_(0.5)

    def build(self, spec: DataSpec, seed: int) -> nn.Module:
        """Build the network with torch's default initialisation, drawn from `seed`."""
        import torch

        from cohortium_resnet18._network import Network

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Network(
                spec.channels,
                spec.output_shape[0],
                self.width,
                self.stem,
                self.norm,
                rank=len(spec.size),
            )


@hookimpl
def cohortium_models() -> list[Offer[Model]]:
    """Offer `resnet18`."""
    return [Offer("resnet18", ResNet18, "ResNet-18 with GroupNorm.")]
