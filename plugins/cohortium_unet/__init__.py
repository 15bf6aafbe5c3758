"""U-Net with GroupNorm: one output for each pixel of an image or volume."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import ge, le

from cohortium.plugin import DataSpec, Model, Offer, StudyError, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

COHORTIUM_API = 1


@frozen(kw_only=True)
class UNet:
    """The U-Net of Ronneberger et al. 2015 (arXiv 1505.04597) for segmentation.

    For volumes it has the layers of Çiçek et al. 2016 (arXiv 1606.06650).  Its convolutions keep
    the size of their input, so the output has the size of the image.  A GroupNorm (Wu & He 2018,
    arXiv 1803.08494) follows each of them, where the papers have none or BatchNorm, which
    example-level privacy refuses.

    It has 483 k parameters at width 16 and depth 3, for images of one channel and three classes.

    Attributes:
        width: Channels at full resolution.  Each level below has twice as many.
        depth: Number of levels below full resolution.  Each halves the size, and rounds up.
    """

    width: int = field(default=32, validator=[ge(1), le(1 << 14)])
    depth: int = field(default=4, validator=[ge(1), le(8)])

    def preprocess(self, images: Tensor) -> Tensor:
        """Scale intensities from [0, 1] to [-1, 1], by public constants."""
        return images.sub(0.5).div_(0.5)

    def build(self, spec: DataSpec, seed: int) -> nn.Module:
        """Build the network with torch's default initialisation, drawn from `seed`.

        Raises:
            StudyError: The task has no output for each pixel, or the images are too small for the
                depth.
        """
        import torch

        from cohortium_unet._network import Network

        outputs, *size = spec.output_shape
        if tuple(size) != spec.size:
            raise StudyError(
                "model 'unet': it gives outputs for each pixel, and the task has outputs of shape "
                f"{spec.output_shape}; use the task 'segmentation', or another model."
            )
        if min(size) <= 1 << self.depth:
            raise StudyError(
                f"model 'unet': depth {self.depth} takes images of more than {1 << self.depth} "
                f"pixels along each axis, and these have {'×'.join(map(str, size))}; lower depth."
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Network(spec.channels, outputs, self.width, self.depth, rank=len(size))


@hookimpl
def cohortium_models() -> list[Offer[Model]]:
    """Offer `unet`."""
    return [Offer("unet", UNet, "U-Net with GroupNorm, for segmentation.")]
