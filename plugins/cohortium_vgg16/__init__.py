"""VGG-16 (Simonyan & Zisserman 2015) with GroupNorm, one of the networks that PriMIA offers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import ge, le, lt

from cohortium.plugin import DataSpec, Model, Offer, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

COHORTIUM_API = 1


@frozen(kw_only=True)
class VGG16:
    """Thirteen 3×3 convolutions in five stages, then three linear layers.

    The network is configuration D of Simonyan & Zisserman 2015 (arXiv 1409.1556).  GroupNorm (Wu &
    He 2018, arXiv 1803.08494) follows each convolution, because example-level privacy refuses
    BatchNorm.  Images have two axes or three, and any size: each pooling rounds up, and an
    average brings the last maps to one size.

    It has 33.6 M parameters at width 64, 3 channels, 8 classes.  With `pooled_size = 7`, as in the
    paper, it has 134 M.

    Attributes:
        width: Channels of the first stage.  The last has eight times as many, and each hidden
            linear layer has 64 times as many units.
        pooled_size: Side of the last maps before the linear layers.  The paper has 7, for images of
            224 pixels.
        dropout: Probability with which each hidden unit is dropped in training.  The paper has 0.5.
    """

    width: int = field(default=64, validator=[ge(1), le(1 << 12)])
    pooled_size: int = field(default=1, validator=[ge(1), le(32)])
    dropout: float = field(default=0.0, validator=[ge(0), lt(1)])

    def preprocess(self, images: Tensor) -> Tensor:
        """Scale intensities from [0, 1] to [-1, 1], by public constants."""
        return images.sub(0.5).div_(0.5)

    def build(self, spec: DataSpec, seed: int) -> nn.Module:
        """Build the network, with weights drawn from `seed`.

        Convolutions start as He et al. 2015 (arXiv 1502.01852) for ReLU, and linear layers with
        torch's default.
        """
        import torch

        from cohortium_vgg16._network import Network

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Network(
                spec.channels, spec.output_shape[0], self.width, self.pooled_size, self.dropout,
                rank=len(spec.size),
            )  # fmt: skip


@hookimpl
def cohortium_models() -> list[Offer[Model]]:
    """Offer `vgg16`."""
    return [Offer("vgg16", VGG16, "VGG-16 with GroupNorm.")]
