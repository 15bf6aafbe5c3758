"""Proves the checks of privatizers, on a small one that can be broken in every way."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve, frozen

from cohortium.plugin import (
    FederationSpec,
    Guarantee,
    PlanState,
    PrivacyError,
    Randomness,
    Ring,
    RingSum,
    RingVector,
    Workload,
    accounting,
    parameters,
    poisson_batches,
)
from cohortium.testing import ConformanceError, plans, privatizers, samples
from tests.conformance.toy_privatizer import (
    BATCH,
    GOOD,
    MULTIPLIER,
    SITE,
    Toy,
    ToyPlan,
    ToySite,
    Unpromising,
    gradient_of,
    plan,
    site,
)

CALLS = itertools.count()


class RandomRing(ToyPlan):
    @property
    def ring(self) -> Ring:
        return Ring(40 + next(CALLS) % 20)


class ForgetsRetries(ToyPlan):
    @property
    def guarantee(self) -> Guarantee | None:
        return self.guarantee_after(range(self.federation_spec.rounds))


class Shrinks(ToyPlan):
    def guarantee_after(self, rounds: Sequence[int]) -> Guarantee | None:
        most = ToyPlan.guarantee_after(self, range(10))
        assert most is not None
        return evolve(most, epsilon=10.0 - len(rounds))


class HidesTheSeed(ToyPlan):
    def guarantee_after(self, rounds: Sequence[int]) -> Guarantee | None:
        most = ToyPlan.guarantee_after(self, rounds)
        assert most is not None
        return evolve(most, simulation=False)


class SpendsNothingForSomething(ToyPlan):
    @property
    def guarantee(self) -> Guarantee | None:
        return None


class Understates(ToyPlan):
    @property
    def mechanism(self) -> Any:
        return accounting.GaussianMechanism(noise_multiplier=1e3)


class Conceals(ToyPlan):
    @property
    def mechanism(self) -> Any:
        return None


class MovesItsClip(ToyPlan):
    """An adaptive clip in place: a site in another process keeps the old one."""

    def next_state(self, total: RingSum) -> PlanState:
        del total
        object.__setattr__(self, "code", evolve(self.code, step=self.code.step / 2))
        return ()


class ForgetsItself(ToyPlan):
    def __reduce__(self) -> Any:
        code = evolve(self.code, step=self.code.step / 2)
        return ForgetsItself, (
            self.terms, self.workload, self.federation_spec, self.parameters, code,
        )  # fmt: skip


class Stateful(ToyPlan):
    """A clip that moves, as numbers in the state."""

    @property
    def initial_state(self) -> PlanState:
        return (1.0,)

    def next_state(self, total: RingSum) -> PlanState:
        del total
        return (0.5,)


class LosesItsState(Stateful):
    def next_state(self, total: RingSum) -> PlanState:
        del total
        return (np.nan,)


@frozen
class CheaperLater(Stateful):
    """The cost of a round depends on the data of earlier ones."""

    clip: float = 1.0

    def at_round(self, round: int, state: PlanState) -> Any:  # noqa: A002
        del round
        return evolve(self, clip=state[0])

    @property
    def mechanism(self) -> Any:
        return accounting.GaussianMechanism(noise_multiplier=MULTIPLIER / self.clip)


class Transposes(ToyPlan):
    def decode(self, total: RingSum) -> Any:
        return ToyPlan.decode(self, total).flip(0)


class DecodesTheSum(ToyPlan):
    def decode(self, total: RingSum) -> Any:
        return ToyPlan.decode(self, total) * len(total.contributors)


class DecodesMore(ToyPlan):
    def decode(self, total: RingSum) -> Any:
        return torch.cat([ToyPlan.decode(self, total), torch.zeros(1)])


class SystemBatches(ToySite):
    def batches(self, examples: int) -> Iterator[Any]:
        return poisson_batches(self.plan.workload, examples, Randomness.system().stream())


class WithReplacement(ToySite):
    def batches(self, examples: int) -> Iterator[Any]:
        for _ in range(self.plan.workload.steps):
            yield np.minimum(self.draws.uniform(BATCH) * examples, examples - 1).astype(np.int64)


class FixedSizes(ToySite):
    def batches(self, examples: int) -> Iterator[Any]:
        for _ in range(self.plan.workload.steps):
            yield np.argsort(self.draws.uniform(examples))[: examples // 2]


class PublicBatches(ToySite):
    def batches(self, examples: int) -> Iterator[Any]:
        return poisson_batches(
            self.plan.workload, examples, Randomness.insecure_from_seed(0).stream()
        )


class OneStepMore(ToySite):
    def batches(self, examples: int) -> Iterator[Any]:
        workload = self.plan.workload
        return poisson_batches(evolve(workload, steps=workload.steps + 1), examples, self.draws)


class DividesByTheBatch(ToySite):
    def set_private_gradient(self, net: Any, losses: Any, batch: Any) -> None:
        super().set_private_gradient(net, losses, batch)
        for parameter in parameters.trainable(net):
            gradient_of(parameter).div_(torch.tensor(len(batch)))


class ForgetsTheBias(ToySite):
    def set_private_gradient(self, net: Any, losses: Any, batch: Any) -> None:
        super().set_private_gradient(net, losses, batch)
        net[-1].bias.grad = None


class WrongRing(ToySite):
    def release(self, update: Any, weight: float) -> RingVector:
        return RingVector(Ring(20), super().release(update, weight).words)


class SystemNoise(ToySite):
    def __init__(self, plan: ToyPlan, secret: Randomness) -> None:
        super().__init__(plan, secret)
        self.noise = Randomness.system().stream()


class Forgiving(ToySite):
    def release(self, update: Any, weight: float) -> RingVector:
        return super().release(update.nan_to_num(0, 1, -1), weight)


class Weighs(ToySite):
    def release(self, update: Any, weight: float) -> RingVector:
        return super().release(update * (weight / plans.EXAMPLES), weight)


class ForgetsTheMean(ToySite):
    def set_private_gradient(self, net: Any, losses: Any, batch: Any) -> None:
        super().set_private_gradient(net, losses, batch)
        for parameter in parameters.trainable(net):
            gradient_of(parameter).mul_(2)


@frozen
class RefusesAll:
    def plan(self, workload: Workload, federation_spec: FederationSpec, parameters: int) -> Any:
        raise PrivacyError("not today.")


UNNOISED = plan(Unpromising, Toy(unit="site", kind=ForgetsTheMean))


class Wraps(ToySite):
    """Lets a value come round at the other end of the ring."""

    def release(self, update: Any, weight: float) -> RingVector:
        ring, step = self.plan.ring, self.plan.code.step
        levels = np.rint(update.double().numpy() / step) % 2.0**ring.bits
        return RingVector(ring, levels.astype(ring.dtype))


WRAPPED = plan(Unpromising, Toy(unit="nobody", kind=Wraps))

BAD: list[tuple[Any, Any, str]] = [
    (privatizers.check_plan_is_repeatable, plan(RandomRing), "differ in their ring"),
    (
        privatizers.check_plan_is_repeatable,
        RefusesAll(),
        "refused gradients and updates.*not today",
    ),
    (privatizers.check_spent, plan(ForgetsRetries), "of rounds and retries together"),
    (privatizers.check_spent, plan(Shrinks), "it can only grow"),
    (privatizers.check_spent, plan(HidesTheSeed), "set simulation from"),
    (privatizers.check_spent, plan(SpendsNothingForSomething), "yet something is spent"),
    (privatizers.check_mechanism, plan(Understates), "a ledger would count too little"),
    (privatizers.check_mechanism, plan(Conceals), "both or none"),
    (privatizers.check_plan_is_a_value, plan(MovesItsClip), "changed the plan"),
    (privatizers.check_plan_is_a_value, plan(ForgetsItself), "a pickled plan releases"),
    (privatizers.check_plan_is_a_value, plan(LosesItsState), "next_state gave"),
    (privatizers.check_plan_is_a_value, plan(CheaperLater), "known before the run"),
    (privatizers.check_refuses_foreign_state, plan(Stateful), "at_round took the state"),
    (privatizers.check_batches, site(SystemBatches), "one secret gave two series"),
    (privatizers.check_batches, site(WithReplacement), "none twice"),
    (privatizers.check_batches_are_poisson, site(FixedSizes), "deviation 0.00; Poisson"),
    (privatizers.check_batches_are_poisson, site(PublicBatches), "gave equal batches"),
    (privatizers.check_batches_are_poisson, site(OneStepMore), "2 steps were declared"),
    (privatizers.check_gradient, site(DividesByTheBatch), "batch of 0 gave gradients that are not"),
    (privatizers.check_gradient, site(ForgetsTheBias), "left .grad of 5.bias unset"),
    (privatizers.check_gradient, UNNOISED, "must be the mean of the batch"),
    (privatizers.check_release, site(WrongRing), r"in Ring\(bits=20\), where"),
    (privatizers.check_release, site(SystemNoise, SITE), "one vector and one secret gave two"),
    (privatizers.check_refuses_non_finite, site(Forgiving), "holding nan was released"),
    (
        privatizers.check_refuses_out_of_range,
        plan(Unpromising, Toy(unit="nobody", kind=Wraps)),
        "it wrapped",
    ),
    (privatizers.check_round_trip, plan(Transposes), "decode must undo release"),
    (privatizers.check_round_trip, plan(DecodesTheSum, SITE), "decode must undo release"),
    (privatizers.check_round_trip, plan(DecodesMore), "189,"),
    (privatizers.check_weight_is_ignored, site(Weighs), "depends on the weight"),
]

CHECKS = privatizers.CHECKS


@pytest.mark.parametrize(("check", "bad", "words"), BAD)
def test_a_bad_privatizer_fails(check: Any, bad: Any, words: str) -> None:
    with pytest.raises(ConformanceError, match=words):
        check(bad)


@pytest.mark.parametrize("good", GOOD.values(), ids=GOOD)
@pytest.mark.parametrize("check", CHECKS)
def test_valid_plugin_passes_check(check: Any, good: Any) -> None:
    assert "not needed" in (check(good) or "not needed")


def test_every_check_has_bad_implementation() -> None:
    assert {check for check, _, _ in BAD} == set(CHECKS)


def test_the_plans_are_for_the_sample_network() -> None:
    assert parameters.length(samples.network()) == plans.PARAMETERS
