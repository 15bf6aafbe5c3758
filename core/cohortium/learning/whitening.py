"""What the features of public images have in common, and how they vary.

Private training makes little headway along directions in which features hardly vary, and noise
hides what is left of it.  Whitening makes the directions more alike.  Its numbers come from images
that are public or made up, so it costs no privacy.  `private_whitening` has them from private ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from cohortium.data.examples import Examples

MIN_SHARE = 1e-10
"""Directions with less than this share of the largest variance are round-off, and left alone."""


@frozen(eq=False)
class FeatureWhitening:
    """The mean of some features, and a linear map that makes them vary more alike.

    The map is (C/λ + floor)^(-power), relative to what it is where C is zero, with C the features'
    covariance and λ its largest eigenvalue: a function of the whole matrix, so that it does not
    hang on the signs and the order that some machine's arithmetic gives to single eigenvectors.
    With `components` it is followed by the projection on the first of these, whose signs are
    fixed.

    Attributes:
        mean: Shape (D,).
        scale: Brings each block of features to the first one's variance, shape (D,).
        basis: Orthonormal directions in which the features vary, shape (D, K).
        gains: What the map does along these, from 0 to 1, shape (K,).
        is_projected: Whether only these directions are kept.
    """

    mean: Tensor = field(repr=False)
    scale: Tensor = field(repr=False)
    basis: Tensor = field(repr=False)
    gains: Tensor = field(repr=False)
    is_projected: bool

    @classmethod
    def of(
        cls, blocks: Sequence[Tensor], *, power: float, floor: float, components: int = 0
    ) -> Self:
        """Of blocks of features (N, …), D in all, in double precision.

        Args:
            blocks: Each of its own kind of features, of the same N images.
            power: Of the map; a half makes all directions vary alike, but for `floor`.
            floor: Added to the variances, as a share of the largest.
            components: K, of the projection; 0 for none.

        Raises:
            ValueError: They do not vary in so many directions as there are to be components.
        """
        import torch

        wide = [block.double() - block.double().mean(0) for block in blocks]
        mean = torch.cat([block.double().mean(0) for block in blocks])
        sizes = [block.square().sum().sqrt() for block in wide]
        scales = [sizes[0] / size.clamp(min=1e-12) for size in sizes]
        scale = torch.cat([s.expand(w.shape[1]) for s, w in zip(scales, wide, strict=True)])
        centred = torch.cat(wide, dim=1) * scale
        fixed = mean.float(), scale.float()
        if not power and not components:
            none = centred.new_empty(len(mean), 0)
            return cls(*fixed, none.float(), none[0].float(), is_projected=False)
        # Of the N×N products of rows: there are fewer rows than features.
        variances, turns = torch.linalg.eigh(centred @ centred.T)  # (N,), (N, N)
        variances, turns = variances.flip(0), turns.flip(1)
        many = int((variances > MIN_SHARE * variances[0]).sum())
        if components > many:
            raise ValueError(
                f"the features of centre vary in {many} directions only; ask for that many "
                "components at most, or give it more examples."
            )
        many = components or many
        basis = centred.T @ (turns[:, :many] / variances[:many].sqrt())  # (D, K)
        basis *= basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
        gains = (variances[:many] / variances[0] / floor + 1) ** -power
        return cls(*fixed, basis.float(), gains.float(), is_projected=components > 0)

    def __call__(self, blocks: Sequence[Tensor]) -> Tensor:
        """Features (N, D or K) without the mean and through the map."""
        import torch

        rows = torch.cat(tuple(blocks), dim=1)
        centred = (rows - self.mean.to(rows)) * self.scale.to(rows)
        basis, gains = self.basis.to(rows), self.gains.to(rows)
        along = centred @ basis
        if self.is_projected:
            return along * gains
        return centred + (along * (gains - 1)) @ basis.T


def as_channels(examples: Examples, channels: int) -> Tensor:
    """Images (N, C, H, W) in [0, 1], their channels' mean where `channels` is 1.

    Args:
        examples: Public ones.
        channels: C, of the images that they are to be compared with.

    Raises:
        ValueError: They have another number of channels, which cannot be made up.
    """
    import torch

    images = torch.from_numpy(examples.images).float().div_(255)
    if images.shape[1] == channels:
        return images
    if channels != 1:
        raise ValueError(
            f"the images of centre have {images.shape[1]} channels, and the data's have "
            f"{channels}; give others."
        )
    return images.mean(1, keepdim=True)
