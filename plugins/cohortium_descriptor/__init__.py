"""A linear classifier on fixed, public features.

It is the strongest simple baseline for private training.  The features are soft joint histograms of
colours and edges in rings around the centre.  Swain and Ballard 1991 had the idea.  Tramèr and
Boneh 2021 explain why fixed features do well under privacy.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import ge, le

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
    from torch import Tensor, nn

COHORTIUM_API = 1

MAX_FEATURES = 1 << 20
"""Most features of an image.  With more, its histograms would hardly have a pixel for each bin."""

MAX_RADII = 32
MAX_RADIUS = 1e3


def _ascending(_: object, __: object, radii: tuple[float, ...]) -> None:
    pairs = zip((0.0, *radii), radii, strict=False)
    if not 1 <= len(radii) <= MAX_RADII or not all(a < b <= MAX_RADIUS for a, b in pairs):
        raise ValueError(
            f"radii must be positive numbers, ascending, at most {MAX_RADII} of them and up to "
            f"{MAX_RADIUS:g}, not {list(radii[:MAX_RADII])}"
        )


@frozen(kw_only=True)
class Descriptor:
    """Histograms of an image, and one linear layer over them.

    It takes any number of channels and any size from 8×8.  Only the linear layer is trained.  It
    starts at zero.

    Attributes:
        bins: Bins along each axis of a histogram of two colours.
        edge_bins: Bins along each axis of a histogram of gradients.
        radii: Outer radii of the rings, ascending. 1 touches the image's sides.
        standardize: Whether each image is brought to mean 1/2 and standard deviation 1/5, before
            its histograms.  They no longer depend on its exposure.  `extra_features` and `parts`
            take the image as it is.
        norm: Euclidean norm of every image's features.  At 70 the customary clip of 7 cuts almost
            every gradient.  Private training of a linear layer does best there.
        center_on: Public or made-up images of the same kind, such as `phantom`.  Their mean is
            taken off every image's features, before these are scaled to their norm.
        whiten: Degree of whitening.  It scales directions in which the features of `center_on` vary
            much down to those in which they vary little. 0 does nothing.  At 1 all directions vary
            equally.
        variance_floor: Directions with less than this share of the greatest variance count as if
            they had it.  With so few images, smaller variances are chance.
        extra_features: Another model whose prepared images are features, too, such as `pretrained`.
            Over `center_on` they vary as much as the histograms do.
        parts: A model whose prepared images are the shares of parts in each pixel, such as
            `pretrained` on images with masks.  The histograms are taken in each part, too, over
            images averaged down to about 28 pixels a side.  Over `center_on` they vary as much as
            those in the rings do.
        components: Number of directions kept: those in which the features of `center_on` vary most.
            0 keeps every feature.
        private_whitening: Whether to whiten once more, by the second moments of the training
            images.  Sites release these under the run's privacy in the trainer's statistics rounds.
        private_variance_floor: Directions with less than this share of the whole count as if they
            had it.

    Guarantees:
        The features of an image depend on that image, on these constants, on `center_on`, and on
        `parts` and `extra_features`.  So they cost no privacy where the images of `center_on` and
        of those models do not.  The second moments that `private_whitening` takes from training
        images reach the network through clipped gradients alone.
    """

    bins: int = field(default=14, validator=[ge(2), le(256)])
    edge_bins: int = field(default=8, validator=[ge(2), le(256)])
    radii: tuple[float, ...] = field(default=(0.25, 0.5, 0.75, 1.0), validator=_ascending)
    standardize: bool = False
    norm: float = field(default=70.0, validator=[ge(1e-6), le(1e6)])
    center_on: Dataset | None = None
    whiten: float = field(default=0.0, validator=[ge(0), le(1)])
    variance_floor: float = field(default=1e-3, validator=[ge(1e-12), le(1)])
    extra_features: Model | None = None
    parts: Model | None = None
    components: int = field(default=0, validator=[ge(0), le(MAX_FEATURES)])
    private_whitening: bool = False
    private_variance_floor: float = field(default=3e-3, validator=[ge(1e-12), le(1)])

    def __attrs_post_init__(self) -> None:
        """Refuse to whiten without public images."""
        require_public_images(self.center_on, whiten=self.whiten, components=self.components)
        for key in ("extra_features", "parts"):
            if getattr(self, key) is not None and not self.components:
                raise ValueError(f"{key} needs components, the number of features to make of all.")

    def dimension(self, channels: int) -> int:
        """Return D, the number of features of an image with `channels` channels."""
        return self.components or self.described(channels)

    def described(self, channels: int) -> int:
        """Return the number of bins of all histograms of an image.

        The image has `channels` channels.

        Raises:
            StudyError: There are too many.
        """
        pairs = max(1, math.comb(channels, 2))
        found = len(self.radii) * (pairs * self.bins**2 + 2 * self.edge_bins**2)
        if found > MAX_FEATURES:
            raise StudyError(
                f"model 'descriptor' makes {found:,} features of images with {channels} channels, "
                f"more than {MAX_FEATURES:,}; lower bins, edge_bins or the number of radii."
            )
        return found

    def preprocess(self, images: Tensor) -> Tensor:
        """Return features (N, D) of images (N, C, H, W) in [0, 1].

        Raises:
            StudyError: The images are volumes.
        """
        require_two_axes(images.shape[2:], model="descriptor")
        blocks = self._blocks(images)
        if self.center_on is None:
            return blocks[0]
        return scale_to_norm(self._whitening(blocks, images.shape[1]), self.norm)

    def _blocks(self, images: Tensor) -> list[Tensor]:
        """Return histograms in rings, those in parts and features of the extra model.

        Each has the shape (N, …).
        """
        from cohortium_descriptor._features import features

        blocks = features(images, self, self.parts)
        if self.parts is not None:
            blocks[1] = scale_to_norm(blocks[1], self.norm)
        if self.extra_features is not None:
            blocks.append(self.extra_features.preprocess(images).flatten(1))
        return blocks

    @cached_property
    def _whitening(self) -> PublicWhitening:
        """Whitening by the features of `center_on`."""
        assert self.center_on is not None
        return PublicWhitening(
            center_on=self.center_on,
            blocks=self._blocks,
            whiten=self.whiten,
            floor=self.variance_floor,
            components=self.components,
        )

    def build(self, spec: DataSpec, seed: int) -> nn.Module:  # noqa: ARG002
        """Build the linear layer, which starts at zero and needs no seed."""
        if self.private_whitening:
            return whitened_linear_head(
                self.dimension(spec.channels),
                len(spec.classes),
                floor=self.private_variance_floor,
                norm=self.norm,
            )
        return linear_head(self.dimension(spec.channels), len(spec.classes))


@hookimpl
def cohortium_models() -> list[Offer[Model]]:
    """Offer `descriptor`."""
    return [Offer("descriptor", Descriptor, "Fixed colour and edge histograms, linear head.")]
