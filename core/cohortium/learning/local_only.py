"""The network that a site trains alone, which competes with fine-tuned ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from attrs import frozen

from cohortium import parameters
from cohortium.errors import RunError, StudyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import nn

    from cohortium.data.examples import Examples
    from cohortium.learning.preprocessing import Features

    TrainAlone = Callable[[Examples, Features], nn.Module]
    """Trains a network on some of the site's examples alone, with features that are computed."""


DIVERGED: Final = (
    "The run's recipe was chosen for clipped and noised sums, and may diverge without noise. Try a "
    "smaller trainer.learning_rate in a study of this hospital alone, or leave the candidate out "
    "with --no-alone."
)
"""Advice on a network whose loss is infinite, or worse than that of guessing."""


@frozen(eq=False, kw_only=True)
class LocalOnly:
    """The network that the site trains alone.

    Attributes:
        alone: Trains it.
        features: The site's features.
        net: The network of all images, or None if there is none.
        fold_net: The network of one fold's training images.
        reason: The reason why there is none.
    """

    alone: TrainAlone | None
    features: Features
    net: nn.Module | None = None
    fold_net: nn.Module | None = None
    reason: str = ""

    @classmethod
    def of(
        cls, alone: TrainAlone | None, examples: Examples, features: Features, start: nn.Module
    ) -> LocalOnly:
        """Train on all images."""
        found = cls(alone=alone, features=features)
        if alone is None:
            return found
        net, reason = found._trained(examples)
        if net is not None and _shapes(net) != _shapes(start):
            net, reason = None, "it is of another form than the study's model"
        return cls(alone=alone, features=features, net=net, reason=reason)

    def narrowed(self, examples: Examples) -> LocalOnly:
        """Train on `examples`."""
        if self.net is None:
            return self
        fold_net, reason = self._trained(examples)
        return LocalOnly(
            alone=self.alone,
            features=self.features,
            net=None if fold_net is None else self.net,
            fold_net=fold_net,
            reason=reason,
        )

    def required_finite(self, losses: NDArray[np.float64]) -> LocalOnly:
        """Leave the network out if it has infinite losses."""
        if self.net is None or np.isfinite(losses).all():
            return self
        reason = f"its loss is infinite. {DIVERGED.rstrip('.')}"
        return LocalOnly(alone=self.alone, features=self.features, reason=reason)

    def _trained(self, examples: Examples) -> tuple[nn.Module | None, str]:
        assert self.alone is not None
        try:
            return self.alone(examples, self.features).eval(), ""
        except (StudyError, RunError) as error:
            return None, str(error).rstrip(".")


def _shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in parameters.state_dict(net).items()}
