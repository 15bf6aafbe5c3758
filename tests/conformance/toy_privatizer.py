"""A small privatizer that keeps its promises, made to be broken in every way by subclasses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from attrs import evolve, frozen

from cohortium.plugin import (
    FederationSpec,
    FixedPoint,
    Guarantee,
    PlanState,
    PrivacyError,
    Randomness,
    RefusalError,
    Ring,
    RingSum,
    RingVector,
    Workload,
    accounting,
    clipped_sum,
    mean_gradient,
    parameters,
    poisson_batches,
)
from cohortium.privacy.accounting import Mechanism
from cohortium_gaussian import Gaussian
from cohortium_none import NoPrivacy

CLIP, MULTIPLIER, BATCH = 0.5, 2.0, 16
"""The toy's terms: C, σ/C and the declared size of a batch."""

CODE = FixedPoint(Ring(40), 2.0**-20)
"""How the toy encodes."""


def gradient_of(parameter: Any) -> torch.Tensor:
    assert parameter.grad is not None
    gradient: torch.Tensor = parameter.grad
    return gradient


class ToySite:
    """Clips, and adds noise of deviation `MULTIPLIER * CLIP`, at the place its terms ask for."""

    def __init__(self, plan: ToyPlan, secret: Randomness) -> None:
        self.plan, self.terms = plan, plan.terms
        self.noise = secret.stream("noise")
        self.draws = secret.stream("batches")

    @property
    def deviation(self) -> float:
        return MULTIPLIER * CLIP

    def batches(self, examples: int) -> Iterator[Any]:
        return poisson_batches(self.plan.workload, examples, self.draws)

    def set_private_gradient(self, net: Any, losses: Any, batch: Any) -> None:
        if self.terms.unit != "example":
            mean_gradient(net, losses, batch)
            return
        clipped_sum(net, losses, batch, clip=CLIP)
        for parameter in parameters.trainable(net):
            noise = self.drawn(parameter.numel()) if self.terms.against == "everyone" else 0.0
            flat = gradient_of(parameter).double().flatten() + noise
            parameter.grad = (flat / BATCH).view_as(parameter).float()

    def drawn(self, size: int) -> Any:
        return torch.from_numpy(self.deviation * self.noise.normal(size))

    def release(self, update: Any, weight: float) -> RingVector:
        del weight
        values = update.double().numpy()
        if not np.isfinite(values).all():
            raise RefusalError("non-finite", "no.")
        if self.terms.unit == "site":
            values = self.clipped(values) + self.drawn(len(values)).numpy()
        elif self.terms.against == "coordinator":
            # Only the honest survivors' shares are counted on.
            share = self.deviation / BATCH / math.sqrt(self.terms.honest)
            values = values + share * self.noise.normal(len(values))
        return RingVector(self.plan.ring, self.plan.code.encode(values))

    def clipped(self, values: Any) -> Any:
        return values * min(1.0, CLIP / max(1e-12, float(np.linalg.norm(values))))


@frozen
class ToyPlan:
    terms: Toy
    workload: Workload
    federation_spec: FederationSpec
    parameters: int
    code: FixedPoint = CODE

    @property
    def guarantee(self) -> Guarantee | None:
        return self.guarantee_after(range(self.federation_spec.attempts))

    @property
    def ring(self) -> Ring:
        return self.code.ring

    @property
    def length(self) -> int:
        return self.parameters

    def guarantee_after(self, rounds: Sequence[int]) -> Guarantee | None:
        return Guarantee(
            epsilon=float(len(rounds)),
            delta=1e-5,
            epsilon_at_1e_5=float(len(rounds)),
            unit=self.terms.unit,
            adjacency=self.terms.adjacency,
            against=self.terms.against,
            honest=self.terms.honest,
            accountant="none: a toy",
            noise_multiplier=MULTIPLIER,
            simulation=self.federation_spec.insecure_seeded_secrets,
        )

    @property
    def mechanism(self) -> Mechanism | None:
        return (
            None
            if self.guarantee is None
            else accounting.GaussianMechanism(noise_multiplier=MULTIPLIER)
        )

    @property
    def initial_state(self) -> PlanState:
        return ()

    def at_round(self, round: int, state: PlanState) -> Any:  # noqa: A002
        del round, state
        return self

    def next_state(self, total: RingSum) -> PlanState:
        del total
        return ()

    def for_site(self, secret: Randomness, patients: Any = None) -> Any:
        del patients
        return self.terms.kind(self, secret)

    def decode(self, total: RingSum) -> Any:
        mean = self.code.decode(total.words) / len(total.contributors)
        return torch.from_numpy(mean.astype(np.float32))


@frozen
class Toy:
    """A good privatizer with its site or its plan done otherwise."""

    unit: Any = "example"
    against: Any = "everyone"
    honest: int = 1
    adjacency: Any = "zero-out"
    kind: Callable[..., Any] = ToySite
    planned: Callable[..., Any] = ToyPlan

    def plan(self, workload: Workload, federation_spec: FederationSpec, parameters: int) -> Any:
        if self.against == "coordinator" and workload.output != "gradient":
            raise PrivacyError("one gradient a round.")
        return self.planned(self, workload, federation_spec, parameters)


class Bounded(ToySite):
    def release(self, update: Any, weight: float) -> RingVector:
        if float(update.abs().max()) > 100:
            raise RefusalError("out-of-range", "no.")
        return super().release(update, weight)


class Unpromising(ToyPlan):
    """No privacy, by the toy."""

    @property
    def guarantee(self) -> Guarantee | None:
        return None

    def guarantee_after(self, rounds: Sequence[int]) -> Guarantee | None:
        del rounds
        return None


SITE = Toy(unit="site")
SHARED = Toy(against="coordinator", honest=3)
REPLACED = Toy(unit="site", adjacency="replace-one")


def site(kind: Any, toy: Toy | None = None) -> Toy:
    return evolve(toy or Toy(), kind=kind)


def plan(planned: Any, toy: Toy | None = None) -> Toy:
    return evolve(toy or Toy(), planned=planned)


GOOD: dict[str, Any] = {
    "example": Toy(),
    "site": SITE,
    "shared": SHARED,
    "unpromising": plan(Unpromising, Toy(unit="nobody", kind=Bounded)),
    "gaussian-site": Gaussian(unit="site", adjacency="replace-one", epsilon=0.5),
    "gaussian-whole": Gaussian(adjacency="replace-one"),
    "gaussian-adaptive": Gaussian(target_unclipped=0.5),
    "gaussian-adaptive-site": Gaussian(target_unclipped=0.5, unit="site", noise="distributed"),
    "none": NoPrivacy(),
}
"""Privatizers that keep their promises, by name."""
