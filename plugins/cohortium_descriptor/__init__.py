"""A linear classifier on fixed, public features: private training's strongest simple baseline.

Soft joint histograms of colours and edges in rings around the centre (Swain and Ballard 1991 for
the idea; Tramèr and Boneh 2021 for why fixed features do well under privacy).
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from attrs.validators import ge, gt

from cohortium.plugin import Dataset, DataSpec, Model, Offer, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

COHORTIUM_API = 1


def _ascending(_: object, __: object, radii: tuple[float, ...]) -> None:
    if not radii or any(b <= a for a, b in zip((0.0, *radii), radii, strict=False)):
        raise ValueError(f"radii must be positive and ascending, not {list(radii)}")


@frozen(kw_only=True)
class Descriptor:
    """Histograms of an image, and one linear layer over them.

    For any number of channels and any size from 8×8.  All that is learned is the linear layer,
    which starts at zero.

    Attributes:
        bins: Bins along each axis of a histogram of two colours.
        edge_bins: Bins along each axis of a histogram of gradients.
        radii: Outer radii of the rings, ascending; 1 touches the image's sides.
        norm: Euclidean norm of every image's features.  At 70 the customary clip of 7 cuts almost
            every gradient, which is where private training of a linear layer does best.
        centre: Public or made-up images of the kind, such as `phantom`; what they have in common
            is taken off every image's features, before these are brought to their norm.

    Guarantees:
        The features of an image depend on that image, on these constants and on `centre` alone,
        so they cost no privacy where the images of `centre` do not.
    """

    bins: int = field(default=12, validator=ge(2))
    edge_bins: int = field(default=6, validator=ge(2))
    radii: tuple[float, ...] = field(default=(0.25, 0.5, 0.75, 1.0), validator=_ascending)
    norm: float = field(default=70.0, validator=gt(0))
    centre: Dataset | None = None

    def dimension(self, channels: int) -> int:
        """D, the number of features of an image with so many channels."""
        pairs = max(1, math.comb(channels, 2))
        return len(self.radii) * (pairs * self.bins**2 + 2 * self.edge_bins**2)

    def prepare(self, images: Tensor) -> Tensor:
        """Features (N, D) of images (N, C, H, W) in [0, 1]."""
        from cohortium_descriptor._features import features

        rows = features(images, self)
        if self.centre is not None:
            rows -= self._middle.to(rows)
            rows *= self.norm / rows.norm(dim=1, keepdim=True).clamp_(min=1e-6)
        return rows

    @cached_property
    def _middle(self) -> Any:  # attrs keeps the annotation, and it must be importable
        """The mean features of the images of `centre`, a tensor of shape (D,)."""
        import torch

        from cohortium_descriptor._features import features

        assert self.centre is not None
        images = torch.from_numpy(self.centre.load().train.images)
        return features(images.float().div_(255), self).mean(0)

    def build(self, spec: DataSpec, seed: int) -> nn.Module:  # noqa: ARG002
        """The linear layer; at zero, it needs no seed."""
        import torch
        from torch import nn

        with torch.random.fork_rng(devices=[]):
            net = nn.Linear(self.dimension(spec.channels), len(spec.classes))
        nn.init.zeros_(net.weight)
        nn.init.zeros_(net.bias)
        return net


@hookimpl
def cohortium_models() -> list[Offer[Model]]:
    """Offer `descriptor`."""
    return [Offer("descriptor", Descriptor, "Fixed colour and edge histograms, linear head.")]
