"""Plans of a privatizer for small workloads, and releases of one attempt."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import field, frozen

from cohortium import parameters
from cohortium.crypto.randomness import Randomness
from cohortium.errors import PrivacyError
from cohortium.ring.ring import RingSum
from cohortium.roles.values import FederationSpec, Workload
from cohortium.testing import samples
from cohortium.testing.contract import ensure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from cohortium.roles.protocols import Privatizer
    from cohortium.roles.sessions import PrivacyPlan, RoundPlan, SitePrivatizer
    from cohortium.roles.values import ExampleIndices

    Reals = NDArray[np.float64]

EXAMPLES = 32
"""Declared examples of each site."""

COHORT = FederationSpec(
    sites=6,
    cohort_size=6,
    min_contributors=5,
    max_colluding=1,
    examples=6 * EXAMPLES,
    patients=6 * EXAMPLES,
    rounds=2,
    retries=1,
    insecure_seeded_secrets=True,
)
"""The cohort of the plans."""

PARAMETERS = 188
"""P of the sample network."""

GRADIENT = Workload(output="gradient", steps=1, sampling_rate=1.0)
SAMPLED_GRADIENT = Workload(output="gradient", steps=1, sampling_rate=0.5)
SAMPLED_UPDATE = Workload(output="update", steps=2, sampling_rate=0.5, batch_size=16)
"""Workloads of the plans.

The first has whole batches, whose accounting is exact and quick.
"""


@frozen
class PrivacyProbe:
    """A plan, the workload for which it was made, and the number of a round."""

    workload: Workload
    plan: PrivacyPlan
    number: int = 0

    @property
    def round_plan(self) -> RoundPlan:
        """The plan of the round."""
        return self.plan.at_round(self.number, self.plan.initial_state)

    @property
    def unit(self) -> str | None:
        """The protected unit, or None."""
        guarantee = self.plan.guarantee
        return None if guarantee is None else guarantee.unit

    @property
    def noises_gradients(self) -> bool:
        """Whether privacy must hold after every step.

        An update shows all steps.
        """
        return self.unit in ("example", "patient") and self.workload.output == "update"

    def site(self, *label: int) -> SitePrivatizer:
        """Return one attempt at one site.  Equal labels give equal secrets."""
        return self.round_plan.for_site(
            Randomness.insecure_from_seed(1).derive(*label), np.arange(EXAMPLES)
        )

    def total(self, releases: Sequence[NDArray[np.unsignedinteger]]) -> RingSum:
        """Return the sum of some sites' words."""
        ring = self.plan.ring
        words = ring.zeros(self.plan.length)
        for release in releases:
            words = words + release
        return RingSum(ring, words, tuple(range(len(releases))))

    def decoded(self, releases: Sequence[NDArray[np.unsignedinteger]]) -> Reals:
        """Return the coordinator's decoding of the sum of some sites' words."""
        return self.round_plan.decode(self.total(releases)).double().numpy()

    def seen(self, releases: Sequence[NDArray[np.unsignedinteger]]) -> Reals:
        """Return every element of the sum of some sites' words, shape (length,)."""
        return self.plan.ring.signed(self.total(releases).words).astype(np.float64)

    def releases(self, vectors: Sequence[Tensor], *label: int) -> list[NDArray[np.unsignedinteger]]:
        """Return the words of each site, where site k releases `vectors[k]`."""
        return [
            self.site(*label, k).release(v, float(EXAMPLES)).words for k, v in enumerate(vectors)
        ]

    def released(self, vectors: Sequence[Tensor], *label: int) -> Reals:
        """Return the coordinator's decoding when site k releases `vectors[k]`."""
        return self.decoded(self.releases(vectors, *label))


def privacy_probes(privatizer: Privatizer) -> tuple[PrivacyProbe, ...]:
    """Return plans for the kinds of workload that `privatizer` does not refuse.

    Raises:
        ConformanceError: It refuses all of them.
    """
    key: Any = privatizer
    try:
        return _cached_plans(key)
    except TypeError:  # because a parameter of it cannot be hashed
        return _plans(privatizer)


def _plans(privatizer: Privatizer) -> tuple[PrivacyProbe, ...]:
    found: list[PrivacyProbe] = []
    refusals: list[str] = []
    for workload in (GRADIENT, SAMPLED_UPDATE, SAMPLED_GRADIENT):
        if workload is SAMPLED_GRADIENT and len(found) > 1:
            break
        try:
            found.append(PrivacyProbe(workload, privatizer.plan(workload, COHORT, PARAMETERS)))
        except PrivacyError as error:
            refusals.append(str(error))
    ensure(
        found,
        "plan refused gradients and updates alike, with "
        f"{' '.join(dict.fromkeys(refusals))} One of them must be possible.",
    )
    return tuple(found)


# A plan is a value, and takes seconds to calibrate.  Every check needs the same plans.
_cached_plans = lru_cache(maxsize=4)(_plans)


@frozen
class ProbeNetwork:
    """Examples at one site, some with enormous or undefined losses.

    Attributes:
        scale: Factor of each example's loss, shape (N,).
    """

    scale: Reals = field(factory=lambda: np.ones(EXAMPLES))

    def with_scale(self, example: int, scale: float) -> ProbeNetwork:
        """Return a copy with another factor for one example."""
        changed = self.scale.copy()
        changed[example] = scale
        return ProbeNetwork(changed)

    def gradient(self, privatizer: SitePrivatizer, batch: ExampleIndices) -> Tensor:
        """Return the gradient that `privatizer` sets for a batch, shape (P,)."""
        import torch
        from torch.nn import functional

        net, data = samples.network(), samples.examples(EXAMPLES)
        images = torch.from_numpy(data.images).float().div_(255)
        labels, scale = torch.from_numpy(data.labels), torch.from_numpy(self.scale).float()

        def losses(index: ExampleIndices) -> Tensor:
            each = functional.cross_entropy(net(images[index]), labels[index], reduction="none")
            return each * scale[index]

        privatizer.set_private_gradient(net, losses, batch)
        missing = [name for name, p in net.named_parameters() if p.grad is None]
        ensure(
            not missing,
            f"gradient left .grad of {', '.join(missing)} unset; set that of every trainable "
            "parameter, to zero or noise where there is nothing else.",
        )
        return parameters.flatten_gradients(net, before=parameters.flatten(net))
