"""Four configurations: what each claims, what an audit could show, and what it reaches.

    COHORTIUM_DATA=FOLDER python tests/benchmarks/configurations.py

Prints the table of docs/privacy.md, a row as it comes: the linear `descriptor` on BloodMNIST-19,
ten sites, Dirichlet α = 0.5, ε = 6 at δ = 1.9e-4.  The first row is the mechanism of the paper as
its code was published: each site's update is clipped to 7, noise is drawn, and thrown away.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from attrs import evolve, frozen

from cohortium import Federation, auditing
from cohortium.plugin import FixedPoint, Guarantee, PlanState, RingVector
from cohortium.rounds.wrapped_plan import WrappedRound
from cohortium_descriptor import Descriptor
from cohortium_dirichlet import Dirichlet
from cohortium_fedavg import FedAvg
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from cohortium_gaussian._plan import GaussianPlan
from cohortium_gaussian._site import GaussianSite
from cohortium_npz import Npz
from cohortium_phantom import Phantom

CLAIMED: dict[str, Any] = {"epsilon": 6.0, "delta": 1.9e-4}


@frozen
class ThrownAway:
    """A site that clips, draws noise, logs it and sends what it had before."""

    privatizer: GaussianSite

    def batches(self, examples: int) -> Any:
        return self.privatizer.batches(examples)

    def set_private_gradient(self, net: Any, losses: Any, batch: Any) -> None:
        self.privatizer.set_private_gradient(net, losses, batch)

    def release(self, vector: Any, weight: float) -> RingVector:
        del weight
        plan = self.privatizer.plan
        values = vector.detach().to("cpu", torch.float64, copy=True).numpy()
        values *= min(1.0, plan.terms.clip_norm / max(float(np.linalg.norm(values)), 1e-12))
        self.privatizer._noise.normal(len(values))
        return RingVector(plan.ring, plan.code.encode(values))


@frozen
class PublishedPlan(GaussianPlan):
    """Claims what the paper claims, whatever its numbers."""

    def guarantee_after(self, rounds: Sequence[int]) -> Guarantee:
        honest = super().guarantee_after(rounds)
        return evolve(honest, epsilon=6.0, accountant="none: as published", bounds={})

    def _narrowest(self) -> FixedPoint:
        # It sent floating-point numbers; a grid as coarse as the noise would be another fault.
        size = self.federation_spec.cohort_size
        return FixedPoint.fitting(size * self.terms.clip_norm, step=2.0**-17, terms=size)

    def at_round(self, round: int, state: PlanState) -> Any:  # noqa: A002
        wrap: Any = ThrownAway
        return WrappedRound(super().at_round(round, state), wrap)


@frozen(kw_only=True)
class Published(Gaussian):
    """The paper's mechanism as its code ran."""

    def plan(self, workload: Any, federation_spec: Any, parameters: int) -> PublishedPlan:
        honest = super().plan(workload, federation_spec, parameters)
        return PublishedPlan(
            self,
            workload=workload,
            federation_spec=federation_spec,
            parameters=parameters,
            mechanisms=honest.mechanisms,
        )


def rows(data: str) -> dict[str, Federation]:
    """The configurations by name."""
    parts: dict[str, Any] = {
        "dataset": Npz(path=data),
        "partitioner": Dirichlet(alpha=0.5),
        "aggregator": "secagg",
        "sites": 10,
        "threads": 1,
        "evaluate_every": 0,
    }
    cells = Phantom(examples=2000, validation=0, test=0)
    linear = Descriptor(center_on=cells)
    local = FedAvg(
        local_epochs=5, learning_rate=0.002, optimizer_options={"momentum": 0.9}, schedule="cosine",
        server_optimizer_options={"momentum": 0.8},
    )  # fmt: skip
    step = FedSGD(learning_rate=0.1)
    shared: dict[str, Any] = {"min_contributors": 10, "max_colluding": 1}
    against: Any = {"noise": "distributed"}
    return {
        "the paper's, as published": Federation(
            **parts, model=Descriptor(), trainer=local, rounds=20,
            privatizer=Published(unit="site", clip_norm=7.0, **CLAIMED),
        ),
        "local noise": Federation(
            **parts, model=linear, trainer=step, rounds=100,
            privatizer=Gaussian(clip_norm=7.0, **CLAIMED),
        ),
        "shared noise": Federation(
            **parts, **shared, model=linear, trainer=step, rounds=100,
            privatizer=Gaussian(clip_norm=7.0, **against, **CLAIMED),
        ),
        "site level, shared noise": Federation(
            **parts, **shared, model=Descriptor(), trainer=local, rounds=5,
            privatizer=Gaussian(clip_norm=0.5, unit="site", **against, **CLAIMED),
        ),
    }  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="bloodmnist_19.npz")
    parser.add_argument("--releases", type=int, default=4_000)
    given = parser.parse_args()
    print("| configuration | claimed ε | audited ε | could have come to | verdict | accuracy |")
    print("| --- | --- | --- | --- | --- | ---: |", flush=True)
    for name, federation in rows(given.data).items():
        run_config = federation.prepare().run_config
        found = auditing.audit_mechanism(
            federation.privatizer,
            run_config.workload,
            run_config.federation_spec,
            releases=given.releases,
        )
        result = federation.run()
        assert result.guarantee is not None
        whom = f"one {result.guarantee.unit}, against {result.guarantee.against}"
        verdict = "**refuted**" if found.is_refuted else "not refuted"
        print(
            f"| {name} | {result.guarantee.epsilon:.2f}, {whom} | at least {found.bound:.2f}, "
            f"where {found.claim:.2f} is claimed | {found.max_detectable_epsilon:.2f} | {verdict} "
            f"| {result.accuracy:.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
