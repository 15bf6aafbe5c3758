"""However wrong the declared numbers are, a sum is right or an error: it never wraps in silence."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium.plugin import FederationSpec, Randomness, RefusalError, RingSum, RunError, Workload
from cohortium.rounds.site import SimulatedSiteFactory
from cohortium_gaussian import Gaussian
from cohortium_none import NoPrivacy
from cohortium_skellam import Skellam
from tests.support.federations import tiny_federation
from tests.support.round_plans import first_round

UPDATE = Workload(output="update", steps=1, sampling_rate=1.0, batch_size=8)
GRADIENT = Workload(output="gradient", steps=1, sampling_rate=0.5)

TERMS = [
    NoPrivacy(),
    NoPrivacy(max_abs_value=0.25),
    NoPrivacy(max_abs_value=2.0, quantization_step=0.01),
]


@given(
    terms=st.sampled_from(TERMS),
    declared=st.integers(1, 10_000),
    size=st.sampled_from([1, 3, 130]),
    data=st.data(),
)
@settings(deadline=None)
def test_a_weighted_mean_is_right_or_an_error(
    terms: NoPrivacy, declared: int, size: int, data: st.DataObject
) -> None:
    federation_spec = FederationSpec(sites=size, cohort_size=size, examples=declared, rounds=1)
    plan = terms.plan(UPDATE, federation_spec, 1)
    share = data.draw(st.sampled_from([declared // size, declared, declared + 1, 5 * declared]))
    weights = [float(share)] * data.draw(st.integers(1, size))
    values = [data.draw(st.sampled_from([-1.0, 0.3, 1.0])) * terms.max_abs_value for _ in weights]
    try:
        mean = mean_of(plan, values, weights)
    except (RefusalError, RunError) as error:
        mean, told = None, str(error)
    if sum(weights) > declared * (1 + 1e-6) + declared * terms.quantization_step:
        assert mean is None
        assert "raise examples under [data]" in told
    elif mean is not None and sum(weights) * size / declared > 200 * terms.quantization_step * len(
        weights
    ):
        assert mean == pytest.approx(np.mean(values), abs=0.02 * terms.max_abs_value)
    assert mean is not None or sum(weights) > declared


def mean_of(plan: Any, values: list[float], weights: list[float]) -> float:
    total = plan.ring.zeros(plan.length)
    for value, weight in zip(values, weights, strict=True):
        private = first_round(plan).for_site(Randomness.insecure_from_seed(0))
        total += private.release(torch.tensor([value]), weight).words
    return float(first_round(plan).decode(RingSum(plan.ring, total, tuple(range(len(weights))))))


@cache
def planned(kind: str) -> Any:
    federation_spec = FederationSpec(
        sites=4, cohort_size=4, examples=40, rounds=1, min_contributors=4, max_colluding=1
    )
    terms: dict[str, Any] = {
        "everyone": Gaussian(epsilon=50.0),
        "shared": Gaussian(epsilon=50.0, noise="distributed"),
        "skellam": Skellam(epsilon=50.0),
    }
    return terms[kind].plan(GRADIENT, federation_spec, 1)


@pytest.mark.parametrize("kind", ["everyone", "shared", "skellam"])
@pytest.mark.parametrize("examples", [10, 40, 5_000])
@pytest.mark.parametrize("sign", [-1, 1])
def test_clipped_sum_above_declaration_stays_in_ring(kind: str, examples: int, sign: int) -> None:
    # Every example of every site is drawn, and all gradients are parallel.
    plan = planned(kind)
    total = plan.ring.zeros(1)
    for _ in range(4):
        net = torch.nn.Linear(1, 1, bias=False)
        private = first_round(plan).for_site(Randomness.system())
        losses = lambda batch, net=net: 9.0 * sign * net(torch.ones(len(batch), 1))[:, 0]  # noqa: E731
        private.set_private_gradient(net, losses, np.arange(examples))
        assert net.weight.grad is not None
        total += private.release(net.weight.grad.flatten(), 1.0).words
    mean = float(first_round(plan).decode(RingSum(plan.ring, total, (0, 1, 2, 3))))
    # Ten examples of norm C over the five of a declared batch, and the noise.
    assert sign * mean == pytest.approx(2.0, abs=1.0)


@pytest.mark.parametrize("privatizer", ["none", Gaussian(epsilon=50.0, unit="site")])
def test_site_above_declared_examples_takes_no_part(privatizer: Any) -> None:
    ready = tiny_federation(privatizer=privatizer).prepare()
    run_config, examples = ready.run_config, ready.splits.train.select(ready.partition[0])
    for declared, is_taken in ((len(examples), True), (len(examples) - 1, False)):
        federation_spec = evolve(run_config.federation_spec, examples=declared)
        recipe = SimulatedSiteFactory(
            evolve(run_config, federation_spec=federation_spec), 0, examples
        )
        if is_taken:
            recipe.create()
        else:
            with pytest.raises(RefusalError, match=f"declares {declared} examples over all sites"):
                recipe.create()
