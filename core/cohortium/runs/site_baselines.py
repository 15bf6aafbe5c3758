"""Networks that a simulated site would have instead of the federation's.

A site alone trains the study on its own images.  A site that adapts chooses among the network that
it got, that network after fine-tuning, and the one that it trains alone.  Only the simulator can
compare the results, because that needs a site's held-out images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from attrs import define, field

from cohortium.crypto.randomness import Seeds
from cohortium.errors import RequestError
from cohortium.learning.fine_tuning import FineTuning
from cohortium.learning.preprocessing import ComputedInputs
from cohortium.runs.alone import AloneTraining

if TYPE_CHECKING:
    from torch import nn

    from cohortium.data.examples import Examples
    from cohortium.learning.preprocessing import Features
    from cohortium.roles.values import SiteId
    from cohortium.runs.alone import Run
    from cohortium.runs.prepare import PreparedStudy


@define(eq=False)
class SiteBaselines:
    """The networks of one simulated site. Both use one training on all of its images.

    Attributes:
        prepared: The study of all sites.
        site: Number of the site.
        training: The training of the site alone.
    """

    prepared: PreparedStudy
    site: SiteId
    training: AloneTraining
    _examples: Examples = field(init=False)
    _features: ComputedInputs = field(init=False)
    _alone: nn.Module | None = field(default=None, init=False)

    @classmethod
    def of(cls, prepared: PreparedStudy, site: SiteId, run: Run) -> SiteBaselines:
        """Return the networks of a site, of which none is trained yet.

        Args:
            prepared: The study of all sites.
            site: Number of the site.
            run: Runs the study of the one site.
        """
        return cls(prepared, site, AloneTraining.of(prepared.federation, run))

    def __attrs_post_init__(self) -> None:
        """Compute the features of the site's images."""
        run_config = self.prepared.run_config
        self._examples = self.prepared.splits.train.select(self.prepared.partition[self.site])
        self._features = ComputedInputs.of(
            run_config.model, self._examples.images, run_config.spec, self.prepared.features
        )

    def alone(self) -> nn.Module:
        """Return the network that the site trains by itself."""
        if self._alone is None:
            self._alone = self._train(self._examples, self._features)
        return self._alone

    def adapted(self, net: nn.Module) -> nn.Module:
        """Return the network that `FineTuning` chooses.

        A site with too few images for that keeps `net`.

        Args:
            net: The network that the site uses, which is not changed.
        """
        run_config = self.prepared.run_config
        seed = Seeds(self.prepared.federation.seed).integer("fine-tuning", self.site)
        try:
            tuned = FineTuning().fine_tune(
                net,
                self._examples,
                run_config.spec,
                run_config.model,
                Seeds(seed),
                alone=lambda examples, features: (
                    self.alone() if examples is self._examples else self._train(examples, features)
                ),
                device=run_config.device,
                features=self._features,
            )
        except RequestError:
            return net
        return tuned.net

    def _train(self, examples: Examples, features: Features) -> nn.Module:
        splits = attrs.evolve(self.prepared.splits, train=examples, test=None)
        return self.training.train(splits, features).net
