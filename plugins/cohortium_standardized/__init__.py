"""Images with a declared mean and standard deviation by channel, for any model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import deep_iterable, ge, gt, le, min_len

from cohortium.plugin import Model, Offer, StudyError, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cohortium.plugin import DataSpec

COHORTIUM_API = 1

REACH = 3.0
"""Standard deviations on either side of the mean that fill the range of an image."""


@frozen(kw_only=True)
class Standardized:
    """A model on images whose mean and standard deviation are declared.

    An image in [0, 1] becomes 1/2 + (image - mean) / (6 · deviation), cut off at 0 and 1.  So three
    standard deviations on either side of the mean fill the range.

    `cohortium statistics` releases both numbers of the hospitals' images, with a guarantee.

    Attributes:
        mean: Mean of each channel, in [0, 1].
        deviation: Standard deviation of each channel, in (0, 1].
        model: The model that receives the images.
    """

    mean: tuple[float, ...] = field(
        default=(0.5,), validator=[min_len(1), deep_iterable([ge(0.0), le(1.0)])]
    )
    deviation: tuple[float, ...] = field(
        default=(1 / 6,), validator=[min_len(1), deep_iterable([gt(0.0), ge(1e-6), le(1.0)])]
    )
    model: Model

    def __attrs_post_init__(self) -> None:
        """Refuse means and deviations of different numbers of channels."""
        if len(self.mean) != len(self.deviation):
            raise StudyError(
                f"model 'standardized' has {len(self.mean)} means and {len(self.deviation)} "
                "deviations; give one of each for every channel."
            )

    def preprocess(self, images: Tensor) -> Tensor:
        """Return the inner model's inputs for standardized images."""
        import torch

        axes = (1, -1, *(1 for _ in images.shape[2:]))
        mean, deviation = (
            torch.tensor(values, dtype=images.dtype, device=images.device).view(axes)
            for values in (self.mean, self.deviation)
        )
        scaled = images.sub(mean).div_(deviation * 2 * REACH).add_(0.5).clamp_(0.0, 1.0)
        return self.model.preprocess(scaled)

    def build(self, spec: DataSpec, seed: int) -> nn.Module:
        """Build the inner model's network.

        Raises:
            StudyError: The images have another number of channels.
        """
        if len(self.mean) not in {1, spec.channels}:
            raise StudyError(
                f"model 'standardized' has the means of {len(self.mean)} channels, and the images "
                f"have {spec.channels}; give one mean and deviation for each."
            )
        return self.model.build(spec, seed)


@hookimpl
def cohortium_models() -> list[Offer[Model]]:
    """Offer `standardized`."""
    return [
        Offer("standardized", Standardized, "A model on images of declared mean and deviation.")
    ]
