"""The adversary of a privatizer's guarantee, at its strongest.

It chooses all data. It sees each noised sum of one site, or each sum over as few honest sites as
the noise is sized for. It replays public values: if the batches do not depend on the secret, it
knows them, and targets a unit that will be in many.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from attrs import field, frozen

from cohortium import parameters
from cohortium.crypto.randomness import Randomness
from cohortium.rounds.guard import guard
from cohortium.testing.plans import PrivacyProbe

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cohortium.privacy.guarantee import Guarantee
    from cohortium.roles.sessions import PrivacyPlan, SitePrivatizer
    from cohortium.roles.values import ExampleIndices, Workload

PARAMETERS = 2
"""Parameters of the probing network. One is the probed unit's direction, the other everybody
else's."""

HUGE = 1e6
"""Size of the probed unit's gradient, or of the probed site's update. A clip must scale it down."""

MAX_EXAMPLES = 1024
"""Most examples at a probing site."""


@frozen(eq=False, kw_only=True)
class Probe:
    """A plan for the probing network, with the adversary's strategy.

    Attributes:
        plan: The privatizer's own, for a network of two parameters.
        number: Round of the attempts.
        workload: The declaration for which the plan was made.
        guarantee: The guarantee that the plan claims.
        secret: The sites' source of secrets. By default the operating system's.
    """

    plan: PrivacyPlan
    number: int
    workload: Workload
    guarantee: Guarantee
    secret: Randomness = field(factory=Randomness.system)
    _trial: PrivacyProbe = field(init=False)
    _net: nn.Module = field(init=False)
    _patients: ExampleIndices = field(init=False, repr=False)

    @_trial.default
    def _make_trial(self) -> PrivacyProbe:
        return PrivacyProbe(self.workload, self.plan, self.number)

    @_net.default
    def _make_net(self) -> nn.Module:
        import torch

        return torch.nn.Linear(PARAMETERS, 1, bias=False)

    @_patients.default
    def _make_patients(self) -> ExampleIndices:
        # Enough examples for batches of a few, with two images of each patient.
        size = min(MAX_EXAMPLES, max(8, math.ceil(4 / self.workload.sampling_rate)))
        return np.arange(size, dtype=np.int64) // (2 if self.guarantee.unit == "patient" else 1)

    @property
    def sites(self) -> int:
        """Number of sites whose sum the adversary sees."""
        return self.guarantee.honest if self.guarantee.against == "coordinator" else 1

    @property
    def absent(self) -> float:
        """Factor of the neighbouring unit."""
        return -HUGE if self.guarantee.adjacency == "replace-one" else 0.0

    def attempt(self, scale: float, attempt: int) -> float:
        """Return the adversary's number after an attempt.

        In the attempt, the probed unit's gradient or update has the size `scale`.
        """
        sites = [self._site(attempt, site) for site in range(self.sites)]
        if self.guarantee.unit == "site":
            words = [
                privatizer.release(self._direction(scale if site == 0 else 0.0), 1.0).words
                for site, privatizer in enumerate(sites)
            ]
            return float(self._trial.decoded(words)[0])
        features = self._features(scale, self._aim(attempt))
        others = self._features(0.0, np.arange(0))
        seen = [self._steps(p, others if k else features) for k, p in enumerate(sites)]
        if self._trial.noises_gradients:
            return float(sum(gradient[0] for gradient in seen[0]))
        words = [p.release(g[-1], 1.0).words for p, g in zip(sites, seen, strict=True)]
        return float(self._trial.decoded(words)[0])

    def _site(self, *label: int) -> SitePrivatizer:
        privatizer = self._trial.round_plan.for_site(self.secret.derive(*label), self._patients)
        return guard(privatizer, self.guarantee, self.workload)

    def _steps(self, privatizer: SitePrivatizer, features: Tensor) -> list[Tensor]:
        """Return each gradient of an attempt, shape (2,)."""
        import torch

        def losses(batch: ExampleIndices) -> Tensor:
            out: Tensor = self._net(features[torch.from_numpy(batch)])
            return out[:, 0]

        found = []
        for batch in privatizer.batches(len(features)):
            privatizer.set_private_gradient(self._net, losses, batch)
            found.append(parameters.flatten_gradients(self._net, before=torch.zeros(0)))
        return found

    def _aim(self, attempt: int) -> ExampleIndices:
        """Return the images of the unit in most batches of a replay.

        The replay uses other secrets.
        """
        replay = self._trial.round_plan.for_site(
            self.secret.derive("replay", attempt), self._patients
        )
        drawn = [self._patients[batch] for batch in replay.batches(len(self._patients))]
        counts = np.bincount(np.concatenate(drawn), minlength=1)
        return np.flatnonzero(self._patients == np.argmax(counts))

    def _features(self, scale: float, probed: ExampleIndices) -> Tensor:
        """Return the network's input, shape (N, 2).

        Each row is that example's gradient.
        """
        import torch

        features = torch.zeros(len(self._patients), PARAMETERS)
        features[:, 1] = 1.0
        features[torch.from_numpy(probed)] = self._direction(scale)
        return features

    def _direction(self, scale: float) -> Tensor:
        import torch

        return torch.tensor([scale, 0.0])
