"""The sizes in a study's forecast are those of its messages."""

from __future__ import annotations

from typing import Any

import torch
from attrs import evolve, frozen

from cohortium.plugin import LocalResult, LocalTask, ReleasedMean, SitePrivatizer
from cohortium.runs.forecast import forecast
from cohortium_fedavg import FedAvg
from cohortium_gaussian import Gaussian
from tests.support.federations import tiny_federation


@frozen(kw_only=True)
class TwoVectors(FedAvg):
    """Sites release three further numbers, and the server publishes five."""

    def train(self, task: LocalTask, privatizer: SitePrivatizer) -> LocalResult:
        return evolve(super().train(task, privatizer), extra=torch.zeros(3))

    def extra_length(self, parameters: int) -> int:
        return 3

    def initial_server_state(self, parameters: int) -> torch.Tensor:
        return torch.zeros(5)

    def next_server_state(self, server_state: torch.Tensor, mean: ReleasedMean) -> torch.Tensor:
        return server_state


def test_forecast_counts_further_numbers() -> None:
    parts: dict[str, Any] = {"privatizer": Gaussian(epsilon=6.0, unit="site", delta=1e-3)}
    plain = tiny_federation(**parts).prepare()
    both = tiny_federation(trainer=TwoVectors(), **parts).prepare()
    (one,), (two,) = forecast(plain), forecast(both)
    assert one.weights_bytes == 4 * one.parameters
    assert two.weights_bytes == 4 * (two.parameters + 5)
    ring, length = both.run_config.plan.ring, both.parameters + 3
    assert two.vector_bytes == ring.bytes_for(length)
    assert forecast(both, [6.0])[0].vector_bytes == two.vector_bytes
