"""Warnings about a guarantee."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from attrs import frozen

from cohortium.privacy.guarantee import Guarantee
from cohortium.rounds.wrapped_plan import WrappedPlan
from cohortium.runs.guarantee_warnings import guarantee_warnings
from cohortium_fedavg import FedAvg
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from cohortium_skellam import Skellam
from tests.support.federations import tiny_federation

NOISE: dict[str, Any] = {"epsilon": 2.0, "delta": 1e-3}
SHARED: dict[str, Any] = {"aggregator": "secagg", "max_colluding": 1, "min_contributors": 3}


def warnings_of(**settings: Any) -> tuple[str, ...]:
    run_config = tiny_federation(**settings).prepare().run_config
    return guarantee_warnings(run_config.plan, run_config.federation_spec)


@pytest.mark.parametrize(
    "settings",
    [
        {"privatizer": Gaussian(**NOISE), "trainer": FedSGD(), "retries": 2},
        {"privatizer": Gaussian(**NOISE), "trainer": FedAvg(batch_size=2, local_steps=3)},
        {"privatizer": Gaussian(unit="site", **NOISE), "trainer": FedAvg(batch_size=2)},
        {
            "privatizer": Gaussian(noise_schedule="optimizer", **NOISE),
            "trainer": FedSGD(sampling_rate=1.0),
            "rounds": 4,
            "retries": 1,
        },
        {"privatizer": Gaussian(target_unclipped=0.5, **NOISE), "trainer": FedSGD()},
        {"privatizer": Gaussian(noise="distributed", **NOISE), "trainer": FedSGD(), **SHARED},
        {"privatizer": Skellam(**NOISE), "trainer": FedSGD(sampling_rate=1.0), **SHARED},
    ],
    ids=["example", "steps", "site", "schedule", "adaptive clip", "shared", "skellam"],
)  # fmt: skip
def test_own_privatizers_state_what_a_ledger_counts(settings: dict[str, Any]) -> None:
    assert not [each for each in warnings_of(**settings) if "states" in each]


@frozen
class HalfPlan(WrappedPlan):
    """A plan that states half of its ε."""

    @property
    def guarantee(self) -> Guarantee | None:
        found = self.plan.guarantee
        assert found is not None
        return attrs.evolve(found, epsilon=found.epsilon / 2)


@frozen
class Half:
    """A privatizer that states half of its ε."""

    def plan(self, *arguments: Any) -> HalfPlan:
        return HalfPlan(Gaussian(**NOISE).plan(*arguments), lambda site: site)


def test_smaller_epsilon_than_a_ledger_counts_is_told() -> None:
    warned = warnings_of(privatizer=Half(), trainer=FedSGD())
    assert any("states ε = 1, and its mechanisms compose to 2, which" in each for each in warned)
