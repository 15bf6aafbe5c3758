"""A linear head that is computed from the moments of features, in one private release.

Mehta et al. 2023 (arXiv 2211.13403, DP-LS) solve a least-squares problem from noised moments.  With
fixed features, they found it better than private gradients at small ε.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import ge, gt, le, lt

from cohortium.plugin import DataSpec, Model, Multiclass, Offer, StudyError, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

COHORTIUM_API = 1


@frozen(kw_only=True)
class Moments:
    """The features of another model, and a head from their moments by ridge regression.

    In its statistics rounds, the trainer `fedsgd` releases for each example x xᵀ, the features of
    its class, and its class.  Here x are its features, scaled down to norm 1.  All parties compute
    the head from the sum.  One round is enough.  Further rounds train another linear layer, whose
    output is added.

    Attributes:
        features: A model whose learned part is a linear layer, such as `descriptor`.
        norm: Norm of features that is scaled to 1.  Features of a larger norm are scaled to 1, too.
        second_moment_share: Share of x xᵀ in the squared norm of an example's release.  The class
            and its features have equal parts of the rest.
        ridge: Factor of the ridge.  At 1 the ridge is the spectral norm that the noise of the
            second moments has in expectation.

    Guarantees:
        The release of an example has a norm of at most 1, for any features.  So a privatizer with
        `clip_norm = 1` cuts nothing, and the head has the whole sum.
        The privatizer clips each example's release, so the sensitivity of the sum is its clip norm.
        The head is a function of the released sum alone, and costs no more privacy.
        The deviation of the noise is measured in the antisymmetric part of the released second
        moments.  That part is zero for every data set, so it holds noise alone.
    """

    features: Model
    norm: float = field(default=70.0, validator=[ge(1e-6), le(1e6)])
    second_moment_share: float = field(default=0.2, validator=[gt(0.0), ge(1e-6), lt(1.0)])
    ridge: float = field(default=0.1, validator=[ge(0.0), le(1e6)])

    def preprocess(self, images: Tensor) -> Tensor:
        """Return the features of images (N, C, …), shape (N, D)."""
        return self.features.preprocess(images)

    def build(self, spec: DataSpec, seed: int) -> nn.Module:
        """Build the head, whose moments are zero.

        Raises:
            StudyError: The task is not one class for each image, or the features have no linear
                head.
        """
        from torch import nn

        from cohortium_moments._head import MomentsHead

        if not isinstance(spec.task, Multiclass):
            raise StudyError(
                "model 'moments' takes the task 'multiclass', one class for each image; use the "
                "features' own model."
            )
        inner = self.features.build(spec, seed)
        if type(inner) is not nn.Linear:
            raise StudyError(
                "model 'moments' needs features under a linear layer, and its model builds a "
                f"{type(inner).__name__}; use 'descriptor', 'backbone', 'pretrained' or "
                "'scatternet' without private_whitening, and learn a head alone."
            )
        return MomentsHead(
            inner.in_features,
            inner.out_features,
            norm=self.norm,
            share=self.second_moment_share,
            ridge=self.ridge,
        )


@hookimpl
def cohortium_models() -> list[Offer[Model]]:
    """Offer `moments`."""
    return [Offer("moments", Moments, "A linear head from noised moments, in one release.")]
