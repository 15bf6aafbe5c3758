"""Faults, planted in the honest `gaussian`; each breaks its guarantee in a way of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from attrs import evolve, frozen

from cohortium.auditing.playing import Watched
from cohortium.plugin import (
    Cohort,
    Guarantee,
    Randomness,
    RingVector,
    SitePrivacy,
    Work,
    accounting,
    mean_gradient,
    poisson,
)
from cohortium_gaussian import Gaussian
from cohortium_gaussian._plan import GaussianPlan
from cohortium_gaussian._site import GaussianSite

LOUD = 10.0


@frozen
class Scaled:
    """A stream whose normals are drawn, and then made smaller."""

    stream: Any
    factor: float

    def normal(self, size: int) -> Any:
        return self.factor * self.stream.normal(size)


def with_noise(factor: float) -> Callable[[SitePrivacy], SitePrivacy]:
    def broken(private: SitePrivacy) -> SitePrivacy:
        assert isinstance(private, GaussianSite)
        object.__setattr__(private, "_noise", Scaled(private._noise, factor))
        return private

    return broken


def forgets_clip(private: SitePrivacy) -> SitePrivacy:
    """The same noise, for a clip that nothing reaches."""
    assert isinstance(private, GaussianSite)
    plan = private.plan
    loud = evolve(
        plan,
        terms=evolve(plan.terms, clip=LOUD * plan.terms.clip),
        mechanism=accounting.Gaussian(noise_multiplier=plan.mechanism.noise_multiplier / LOUD),
    )
    object.__setattr__(loud, "code", plan.code)
    return evolve(private, plan=loud)


@frozen
class PublicBatches:
    private: GaussianSite

    def batches(self, examples: int) -> Iterator[Any]:
        stream = Randomness.simulated(0).stream("batches", examples)
        return poisson(self.private.plan.work, examples, stream)

    def gradient(self, net: Any, losses: Any, batch: Any) -> None:
        self.private.gradient(net, losses, batch)

    def release(self, vector: Any, weight: float) -> RingVector:
        return self.private.release(vector, weight)


@frozen
class Weighs(PublicBatches):
    """Scales what leaves by how much it counts: a number of examples escapes."""

    def batches(self, examples: int) -> Iterator[Any]:
        return self.private.batches(examples)

    def release(self, vector: Any, weight: float) -> RingVector:
        return self.private.release(vector * (1 + weight), weight)


@frozen
class Broken:
    """An honest privatizer, each of whose sites has a fault."""

    honest: Any
    fault: Any

    def plan(self, work: Work, cohort: Cohort, parameters: int) -> Watched:
        return Watched(self.honest.plan(work, cohort, parameters), self.fault)


@frozen
class ClipsBySize(PublicBatches):
    """Clips parts of a batch that it takes for examples, in networks larger than a probe's."""

    def batches(self, examples: int) -> Iterator[Any]:
        return self.private.batches(examples)

    def gradient(self, net: Any, losses: Any, batch: Any) -> None:
        if sum(p.numel() for p in net.parameters()) < 10:
            self.private.gradient(net, losses, batch)
            return
        mean_gradient(net, losses, batch)
        plan = self.private.plan
        for parameter in net.parameters():
            norm = max(1e-12, float(parameter.grad.norm()))
            parameter.grad *= len(batch) / plan.expected_batch * min(1.0, plan.terms.clip / norm)


@frozen
class ReadsBySize(ClipsBySize):
    """Takes the first axis of a layer's input for the batch wherever it is as long."""

    def gradient(self, net: Any, losses: Any, batch: Any) -> None:
        if not hasattr(net, "layer"):
            self.private.gradient(net, losses, batch)
            return
        seen: list[Any] = []
        hook = net.layer.register_forward_hook(lambda *call: seen.append((call[1][0], call[2])))
        loss = losses(batch).sum()
        hook.remove()
        ((rows, out),) = seen
        (back,) = torch.autograd.grad(loss, out)
        axis = "n" if len(rows) == len(batch) else "t"
        first = f"{axis}{'t' if axis == 'n' else 'n'}"
        terms = self.private.plan.terms
        each = torch.einsum(f"{first}o,{first}i->noi", back, rows).flatten(1)
        each = torch.cat([each, torch.einsum(f"{first}o->no", back)], 1)
        cut = (terms.clip / each.norm(dim=1).clamp(min=1e-12)).clamp(max=1.0)
        total = (each * cut[:, None]).sum(0) / self.private.plan.expected_batch
        net.layer.weight.grad = total[: net.layer.weight.numel()].view_as(net.layer.weight)
        net.layer.bias.grad = total[net.layer.weight.numel() :]


@frozen
class RestartsAccountant:
    """Calibrates each round as if it were the only one, and says the same of them all."""

    honest: Gaussian

    def plan(self, work: Work, cohort: Cohort, parameters: int) -> Watched:
        plan = self.honest.plan(work, evolve(cohort, rounds=1, retries=0), parameters)
        return Forgetful(plan, lambda private: private)


@frozen
class Forgetful(Watched):
    """Says of all attempts what it says of one."""

    def spent(self, attempts: int) -> Guarantee | None:
        return self.plan.spent(min(attempts, 1))


@frozen
class Fixed:
    """`gaussian` with a given noise multiplier: calibrating for sampled batches takes long."""

    terms: Gaussian
    noise_multiplier: float

    def plan(self, work: Work, cohort: Cohort, parameters: int) -> GaussianPlan:
        steps, rate = (1, 1.0) if self.terms.unit == "site" else (work.steps, work.sampling_rate)
        return GaussianPlan(
            self.terms,
            work=work,
            cohort=cohort,
            parameters=parameters,
            mechanism=accounting.Gaussian(
                noise_multiplier=self.noise_multiplier, sampling_rate=rate, releases=steps
            ),
        )


def rng() -> np.random.Generator:
    return np.random.default_rng(3)
