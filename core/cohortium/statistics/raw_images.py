"""A model without a network, for statistics of images alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cohortium.data.examples import DataSpec


@frozen
class RawImages:
    """A model whose inputs are the images in [0, 1], and whose outputs are zeros."""

    def preprocess(self, images: Tensor) -> Tensor:
        """Return the images."""
        return images

    def build(self, spec: DataSpec, seed: int) -> nn.Module:  # noqa: ARG002
        """Build a layer that gives zeros, with one number that never changes."""
        import torch
        from torch import nn

        shape = spec.output_shape

        class Zeros(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.zero = nn.Parameter(torch.zeros(1))

            def forward(self, images: Tensor) -> Tensor:
                """Return zeros, shape (B, *output_shape)."""
                return self.zero.expand(len(images), *shape)

        return Zeros()
