"""ResNet-9 with BatchNorm and max-pooling, the origin of `dpresnet`.

It serves to compare `dpresnet` with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrs import field, frozen
from attrs.validators import ge, in_, le

from cohortium.plugin import DataSpec, Model, Offer, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

COHORTIUM_API = 1


@frozen(kw_only=True)
class ResNet9:
    """The ResNet-9 of fast CIFAR-10 training (Page 2018).

    It has 6.6 M parameters at width 64.  A stem, a wider block and a residual pair come twice.
    Convolutions are 3×3 without bias.  A norm and a ReLU follow each.  There is 2×2 max-pooling
    wherever the width doubles.  For images of three axes there is one tap more for each.

    Attributes:
        width: Channels of the first convolution.  The last has eight times as many.
        norm: "batch" keeps statistics over examples, which example-level privacy refuses.  "group"
            is the same network without them, which separates the two changes of `dpresnet`.
    """

    width: int = field(default=64, validator=[ge(1), le(1 << 14)])
    norm: Literal["batch", "group"] = field(default="batch", validator=in_(("batch", "group")))

    def preprocess(self, images: Tensor) -> Tensor:
        """Scale intensities from [0, 1] to [-1, 1], by public constants."""
        return images.sub(0.5).div_(0.5)

    def build(self, spec: DataSpec, seed: int) -> nn.Module:
        """Build the network with torch's default initialisation, drawn from `seed`."""
        import torch

        from cohortium_resnet9._network import Network

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Network(
                spec.channels, spec.output_shape[0], self.width, self.norm, rank=len(spec.size)
            )


@hookimpl
def cohortium_models() -> list[Offer[Model]]:
    """Offer `resnet9`."""
    return [Offer("resnet9", ResNet9, "ResNet-9 with BatchNorm and max-pooling.")]
