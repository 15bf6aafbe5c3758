"""Mean and variation of the features of public images, for whitening.

Private training makes little progress along directions in which features hardly vary, and noise
hides the rest.  Whitening makes the variances of the directions more alike.  It uses public or
synthetic images, so it costs no privacy.  `private_whitening` learns a whitening from private
images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from attrs import field, frozen

from cohortium.data.intensity import to_unit_range

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from cohortium.data.splits import Splits
    from cohortium.roles.protocols import Dataset

MIN_SHARE = 1e-10
"""Smallest share of the largest variance that counts.

A direction with less variance is round-off, and whitening does not change it.
"""


@frozen(eq=False)
class FeatureWhitening:
    """Mean of features, and a linear map that evens out variances.

    The map is (C/λ + floor)^(-power), relative to its value where C is zero.  C is the features'
    covariance and λ is its largest eigenvalue.  It is a function of the whole matrix.  So it does
    not depend on the signs and the order of single eigenvectors, which differ between machines.
    With `components`, a projection on the first of the eigenvectors follows, with fixed signs.

    Attributes:
        mean: Shape (D,).
        scale: Scales each block of features to the first one's variance, shape (D,).
        basis: Orthonormal directions in which the features vary, shape (D, K).
        gains: Factors of the map along these directions, from 0 to 1, shape (K,).
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
        """Compute the whitening of blocks of features (N, …), in double precision.

        The blocks have D features in all.

        Args:
            blocks: One block for each kind of features, all of the same N images.
            power: Exponent of the map.  One half makes all variances equal, apart from `floor`.
            floor: Added to the variances, as a share of the largest.
            components: K, the number of directions of the projection.  0 for no projection.

        Raises:
            ValueError: The features vary in fewer directions than `components`.
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
        # Decompose the N×N products of rows, because there are fewer rows than features.
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
        """Return features (N, D or K), centred and mapped."""
        import torch

        rows = torch.cat(tuple(blocks), dim=1)
        centred = (rows - self.mean.to(rows)) * self.scale.to(rows)
        basis, gains = self.basis.to(rows), self.gains.to(rows)
        along = centred @ basis
        if self.is_projected:
            return along * gains
        return centred + (along * (gains - 1)) @ basis.T


def as_channels(splits: Splits, channels: int) -> Tensor:
    """Return the training images, (N, C, …) in [0, 1], with `channels` channels.

    Where `channels` is 1, the result is the mean of the channels.

    Args:
        splits: Public images.
        channels: C, the number of channels of the images to compare with.

    Raises:
        ValueError: The images have another number of channels, which no rule can convert.
    """
    images = to_unit_range(splits.train.images, splits.spec)
    if images.shape[1] == channels:
        return images
    if channels != 1:
        raise ValueError(
            f"the images of centre have {images.shape[1]} channels, and the data's have "
            f"{channels}; give others."
        )
    return images.mean(1, keepdim=True)


def scale_to_norm(rows: Tensor, norm: float) -> Tensor:
    """Return rows of features, each scaled to a norm.

    Args:
        rows: Features, shape (N, D).
        norm: The Euclidean norm of each row of the result.  Rows of zeros stay zero.
    """
    length: Tensor = rows.norm(dim=1, keepdim=True).clamp(min=1e-6)
    return rows * (norm / length)


def require_public_images(center_on: Dataset | None, *, whiten: float, components: int) -> None:
    """Refuse a model that whitens by public images and names none.

    Args:
        center_on: The model's public images.
        whiten: Its degree of whitening.
        components: Its number of directions.

    Raises:
        ValueError: There are no images to take the variance from.
    """
    if (whiten or components) and center_on is None:
        raise ValueError(
            "whiten and components need center_on, public images to take the variance from."
        )


@frozen(eq=False, kw_only=True)
class PublicWhitening:
    """Whitening of a model's features by those of public images.

    It is computed at the first call, once for each number of channels.

    Attributes:
        center_on: The public images.
        blocks: Function that returns the model's blocks of features, each (N, …), of images
            (N, C, …) in [0, 1].
        whiten: Degree of whitening.  0 does nothing.  At 1 all directions vary equally.
        floor: Directions with less than this share of the greatest variance count as if they had
            it.
        components: Number of directions kept, or 0 for every feature.

    Guarantees:
        The whitening depends on `center_on` and the model alone.  So it costs no privacy where the
        images do not.
    """

    center_on: Dataset
    blocks: Callable[[Tensor], Sequence[Tensor]]
    whiten: float
    floor: float
    components: int = 0
    _known: dict[int, FeatureWhitening] = field(factory=dict, init=False, repr=False)

    def __call__(self, blocks: Sequence[Tensor], channels: int) -> Tensor:
        """Return whitened features (N, D or K).

        Args:
            blocks: Blocks of features, each (N, …), of other images.
            channels: C, the number of channels of these images.

        Raises:
            ValueError: The public images have another number of channels, which no rule can
                convert.  Or their features vary in too few directions.
        """
        if channels not in self._known:
            self._known[channels] = FeatureWhitening.of(
                self.blocks(as_channels(self.center_on.load(), channels)),
                power=self.whiten / 2,
                floor=self.floor,
                components=self.components,
            )
        return self._known[channels](blocks)
