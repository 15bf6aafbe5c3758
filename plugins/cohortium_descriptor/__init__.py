"""A linear classifier on fixed, public features: private training's strongest simple baseline.

Soft joint histograms of colours and edges in rings around the centre (Swain and Ballard 1991 for
the idea; Tramèr and Boneh 2021 for why fixed features do well under privacy).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import ge, gt

from cohortium.plugin import DataSpec, Model, Offer, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

COHORTIUM_API = 1


@frozen(kw_only=True)
class Descriptor:
    """Histograms of an image, and one linear layer over them.

    For any number of channels and any size from 8×8.  All that is learned is the linear layer,
    which starts at zero.

    Attributes:
        bins: Bins along each axis of a histogram of two colours.
        edge_bins: Bins along each axis of a histogram of gradients.
        radii: Outer radii of the rings, ascending; 1 touches the image's sides.
        norm: Euclidean norm of every image's features.

    Guarantees:
        The features of an image depend on that image and on these constants alone, so they cost
        no privacy.
    """

    bins: int = field(default=12, validator=ge(2))
    edge_bins: int = field(default=6, validator=ge(2))
    radii: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    norm: float = field(default=10.0, validator=gt(0))

    def prepare(self, images: Tensor) -> Tensor:
        """Features (N, D) of images (N, C, H, W) in [0, 1]."""
        from cohortium_descriptor._features import Histograms, features

        constants = Histograms(
            bins=self.bins, edge_bins=self.edge_bins, radii=self.radii, norm=self.norm
        )
        return features(images, constants)

    def build(self, spec: DataSpec, seed: int) -> nn.Module:  # noqa: ARG002
        """The linear layer; at zero, it needs no seed."""
        import torch
        from torch import nn

        from cohortium_descriptor._features import Histograms

        constants = Histograms(bins=self.bins, edge_bins=self.edge_bins, radii=self.radii)
        with torch.random.fork_rng(devices=[]):
            net = nn.Linear(constants.dimension(spec.channels), len(spec.classes))
        nn.init.zeros_(net.weight)
        nn.init.zeros_(net.bias)
        return net


@hookimpl
def cohortium_models() -> list[Offer[Model]]:
    """Offer `descriptor`."""
    return [Offer("descriptor", Descriptor, "Fixed colour and edge histograms, linear head.")]
