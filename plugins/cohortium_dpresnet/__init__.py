"""DPResNet: a small residual network with GroupNorm, made for private training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import ge, le

from cohortium.plugin import DataSpec, Model, Offer, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

COHORTIUM_API = 1


@frozen
class DPResNet:
    """The network of arXiv 2412.00687.

    It has 4,802,120 parameters at width 64, 3 channels, 8 classes.  Images have two axes or three.

    Attributes:
        width: Channels of the first convolution.  The last has eight times as many.
        standardise: Whether to standardise kernels to mean 0 and variance 1 (Qiao et al. 2019).  De
            et al. 2022 (arXiv 2204.13650) do so under privacy.  The paper does not.
    """

    width: int = field(default=64, validator=[ge(1), le(1 << 14)])
    standardise: bool = False

    def preprocess(self, images: Tensor) -> Tensor:
        """Scale intensities from [0, 1] to [-1, 1].

        The constants are the paper's mean 0.5 and deviation 0.5.
        """
        return images.sub(0.5).div_(0.5)

    def build(self, spec: DataSpec, seed: int) -> nn.Module:
        """Build the network with torch's default initialisation, drawn from `seed`."""
        import torch

        from cohortium_dpresnet._network import Network

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Network(
                spec.channels,
                spec.output_shape[0],
                self.width,
                rank=len(spec.size),
                standardise=self.standardise,
            )


@hookimpl
def cohortium_models() -> list[Offer[Model]]:
    """Offer `dpresnet`."""
    return [Offer("dpresnet", DPResNet, "Small residual network with GroupNorm.")]
