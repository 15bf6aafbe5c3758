"""Faults, planted in the honest `gaussian`; each breaks its guarantee in a way of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from attrs import evolve, frozen

from cohortium.plugin import (
    FederationSpec,
    Guarantee,
    Randomness,
    RingVector,
    SitePrivatizer,
    Workload,
    accounting,
    mean_gradient,
    poisson_batches,
)
from cohortium.rounds.wrapped_plan import WrappedPlan
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


def with_noise(factor: float) -> Callable[[SitePrivatizer], SitePrivatizer]:
    def broken(privatizer: SitePrivatizer) -> SitePrivatizer:
        assert isinstance(privatizer, GaussianSite)
        object.__setattr__(privatizer, "_noise", Scaled(privatizer._noise, factor))
        return privatizer

    return broken


def forgets_clip(privatizer: SitePrivatizer) -> SitePrivatizer:
    """The same noise, for a clip that nothing reaches."""
    assert isinstance(privatizer, GaussianSite)
    plan, here = privatizer.plan, privatizer.round_plan
    loud = evolve(
        plan,
        terms=evolve(plan.terms, clip_norm=LOUD * plan.terms.clip_norm),
        mechanisms=(
            accounting.GaussianMechanism(noise_multiplier=here.mechanism.noise_multiplier / LOUD),
        ),
    )
    object.__setattr__(loud, "code", plan.code)
    return evolve(privatizer, round_plan=loud.at_round(0, ()))


@frozen
class PublicBatches:
    privatizer: GaussianSite

    def batches(self, examples: int) -> Iterator[Any]:
        stream = Randomness.insecure_from_seed(0).stream("batches", examples)
        return poisson_batches(self.privatizer.plan.workload, examples, stream)

    def set_private_gradient(self, net: Any, losses: Any, batch: Any) -> None:
        self.privatizer.set_private_gradient(net, losses, batch)

    def release(self, vector: Any, weight: float) -> RingVector:
        return self.privatizer.release(vector, weight)


@frozen
class Weighs(PublicBatches):
    """Scales what leaves by how much it counts: a number of examples escapes."""

    def batches(self, examples: int) -> Iterator[Any]:
        return self.privatizer.batches(examples)

    def release(self, vector: Any, weight: float) -> RingVector:
        return self.privatizer.release(vector * (1 + weight), weight)


@frozen
class Broken:
    """An honest privatizer, each of whose sites has a fault."""

    honest: Any
    fault: Any

    def plan(
        self, workload: Workload, federation_spec: FederationSpec, parameters: int
    ) -> WrappedPlan:
        return WrappedPlan(self.honest.plan(workload, federation_spec, parameters), self.fault)


@frozen
class ClipsBySize(PublicBatches):
    """Clips parts of a batch that it takes for examples, in networks larger than a probe's."""

    def batches(self, examples: int) -> Iterator[Any]:
        return self.privatizer.batches(examples)

    def set_private_gradient(self, net: Any, losses: Any, batch: Any) -> None:
        if sum(p.numel() for p in net.parameters()) < 10:
            self.privatizer.set_private_gradient(net, losses, batch)
            return
        mean_gradient(net, losses, batch)
        plan = self.privatizer.plan
        for parameter in net.parameters():
            norm = max(1e-12, float(parameter.grad.norm()))
            parameter.grad *= (
                len(batch) / plan.expected_batch * min(1.0, plan.terms.clip_norm / norm)
            )


@frozen
class ReadsBySize(ClipsBySize):
    """Takes the first axis of a layer's input for the batch wherever it is as long."""

    def set_private_gradient(self, net: Any, losses: Any, batch: Any) -> None:
        if not hasattr(net, "layer"):
            self.privatizer.set_private_gradient(net, losses, batch)
            return
        seen: list[Any] = []
        hook = net.layer.register_forward_hook(lambda *call: seen.append((call[1][0], call[2])))
        loss = losses(batch).sum()
        hook.remove()
        ((rows, out),) = seen
        (back,) = torch.autograd.grad(loss, out)
        axis = "n" if len(rows) == len(batch) else "t"
        first = f"{axis}{'t' if axis == 'n' else 'n'}"
        terms = self.privatizer.plan.terms
        each = torch.einsum(f"{first}o,{first}i->noi", back, rows).flatten(1)
        each = torch.cat([each, torch.einsum(f"{first}o->no", back)], 1)
        cut = (terms.clip_norm / each.norm(dim=1).clamp(min=1e-12)).clamp(max=1.0)
        total = (each * cut[:, None]).sum(0) / self.privatizer.plan.expected_batch
        net.layer.weight.grad = total[: net.layer.weight.numel()].view_as(net.layer.weight)
        net.layer.bias.grad = total[net.layer.weight.numel() :]


@frozen
class RestartsAccountant:
    """Calibrates each round as if it were the only one, and says the same of them all."""

    honest: Gaussian

    def plan(
        self, workload: Workload, federation_spec: FederationSpec, parameters: int
    ) -> WrappedPlan:
        plan = self.honest.plan(workload, evolve(federation_spec, rounds=1, retries=0), parameters)
        return Forgetful(plan, lambda privatizer: privatizer)


@frozen
class Forgetful(WrappedPlan):
    """Says of all attempts what it says of one."""

    def guarantee_after(self, rounds: Sequence[int]) -> Guarantee | None:
        return self.plan.guarantee_after(rounds[:1])


@frozen
class Fixed:
    """`gaussian` with a given noise multiplier: calibrating for sampled batches takes long."""

    terms: Gaussian
    noise_multiplier: float

    def plan(
        self, workload: Workload, federation_spec: FederationSpec, parameters: int
    ) -> GaussianPlan:
        steps, rate = (
            (1, 1.0) if self.terms.unit == "site" else (workload.steps, workload.sampling_rate)
        )
        return GaussianPlan(
            self.terms,
            workload=workload,
            federation_spec=federation_spec,
            parameters=parameters,
            mechanisms=(
                accounting.GaussianMechanism(
                    noise_multiplier=self.noise_multiplier, sampling_rate=rate, num_releases=steps
                ),
            ),
        )


def rng() -> np.random.Generator:
    return np.random.default_rng(3)
