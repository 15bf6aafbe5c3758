"""A linear classifier on wavelet scattering: features that are not learned.

The transform is that of Bruna and Mallat 2013 (arXiv 1203.1513).  Oyallon and Mallat 2015 (arXiv
1412.8659) put a linear layer on it.  Tramèr and Boneh 2021 (arXiv 2011.11660) do so under privacy.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from attrs.validators import ge, le

from cohortium.plugin import (
    DataSpec,
    Model,
    Offer,
    hookimpl,
    linear_head,
    require_two_axes,
    scale_to_norm,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

COHORTIUM_API = 1

MAX_MAPS = 1 << 13
"""Most maps of one channel, a hundred times the usual number."""


@frozen(kw_only=True)
class ScatterNet:
    """Scattering of two orders, normalised image by image, and a linear layer.

    The wavelets have `scales` octaves and `angles` directions.  Wavelets and moduli are applied
    twice.  A Gaussian averages the result, and every 2^scales-th pixel is taken.  The model takes
    any number of channels.  Only the linear layer is trained.  It starts at zero.  Torch cannot
    write its Fourier transforms as ONNX, and `cohortium export` does without them.

    Attributes:
        scales: J, the number of octaves.
        angles: L, the number of directions in the half circle.
        groups: Number of groups of each channel's 1 + J·L + L²·J·(J-1)/2 maps.  Each group is
            normalised to mean zero and variance one within an image (GroupNorm without parameters).
            The number has to divide that of the maps. 0 does not normalise.
        norm: Euclidean norm of every image's features.

    Guarantees:
        The features of an image depend on that image and on these constants alone.  So they cost no
        privacy.
    """

    scales: int = field(default=2, validator=[ge(1), le(10)])
    angles: int = field(default=8, validator=[ge(1), le(64)])
    groups: int = field(default=27, validator=[ge(0), le(MAX_MAPS)])
    norm: float = field(default=70.0, validator=[ge(1e-6), le(1e6)])

    def __attrs_post_init__(self) -> None:
        """Refuse too many maps, and groups that do not divide them."""
        if self.maps > MAX_MAPS:
            raise ValueError(
                f"{self.scales} scales and {self.angles} angles make {self.maps:,} maps of a "
                f"channel, more than {MAX_MAPS:,}; lower one of them."
            )
        if self.groups and self.maps % self.groups:
            raise ValueError(
                f"groups must divide the {self.maps} maps that {self.scales} scales and "
                f"{self.angles} angles make of a channel, and {self.groups} does not."
            )

    @property
    def maps(self) -> int:
        """K, the number of maps of one channel, of all three orders.

        The orders are zero, one and two.
        """
        first = self.scales * self.angles
        return 1 + first + self.angles**2 * self.scales * (self.scales - 1) // 2

    def preprocess(self, images: Tensor) -> Tensor:
        """Return features (N, C·K·h·w) of images (N, C, H, W).

        The images are in [0, 1]. h is H / 2^J, rounded up.

        Raises:
            StudyError: The images are volumes.
        """
        from torch.nn.functional import group_norm

        from cohortium_scatternet._scattering import scattering

        require_two_axes(images.shape[2:], model="scatternet")
        rows = scattering(  # (N, C, K, h, w)
            images, scales=self.scales, angles=self.angles, banks=self._bank
        )
        if self.groups:
            rows = group_norm(rows.flatten(1, 2), rows.shape[1] * self.groups)
        rows = rows.flatten(1)
        return scale_to_norm(rows, self.norm)

    @cached_property
    def _banks(self) -> dict[tuple[int, int], Any]:
        """Filters by their grid.  Making them takes longer than using them once."""
        return {}

    def _bank(self, height: int, width: int) -> Any:
        from cohortium_scatternet._scattering import filter_bank

        grid = height, width
        if grid not in self._banks:
            self._banks[grid] = filter_bank(*grid, self.scales, self.angles)
        return self._banks[grid]

    def build(self, spec: DataSpec, seed: int) -> nn.Module:  # noqa: ARG002
        """Build the linear layer, which starts at zero and needs no seed."""
        from cohortium_scatternet._scattering import coarse

        places = math.prod(coarse(side, self.scales) for side in spec.size)
        return linear_head(spec.channels * self.maps * places, len(spec.classes))


@hookimpl
def cohortium_models() -> list[Offer[Model]]:
    """Offer `scatternet`."""
    return [Offer("scatternet", ScatterNet, "Wavelet scattering, linear head.")]
