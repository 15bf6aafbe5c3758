"""The clip of the study's own network, held against measurement."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attrs import frozen
from torch import nn

from cohortium.auditing import audit_clip
from cohortium.data.examples import DataSpec
from cohortium.runs.prepare import PreparedStudy
from cohortium_cnn import CNN
from cohortium_fedavg import FedAvg
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from cohortium_secagg import SecAgg
from cohortium_skellam import Skellam
from tests.support.faulty_privatizers import Broken, ClipsBySize, ReadsBySize
from tests.support.federations import QuadrantImages, tiny_federation

FLAT = FedSGD(sampling_rate=1.0)
TURNED = FedSGD(sampling_rate=1.0, flips=True, augmentation_multiplicity=2)


SHARED = SecAgg(reconstruction_threshold=3, num_shares=4)


def prepared(**changes: Any) -> PreparedStudy:
    parts: dict[str, Any] = {
        "dataset": QuadrantImages(examples=60), "trainer": FLAT,
        "privatizer": Gaussian(epsilon=50.0),
        "min_contributors": 4, "max_colluding": 1, "sites": 4, "seed": 3,
    }  # fmt: skip
    return tiny_federation(**(parts | changes)).prepare()


HONEST: list[dict[str, Any]] = [
    {"trainer": TURNED},
    {},
    {"model": CNN(width=4)},
    {"trainer": FedAvg(local_steps=2, batch_size=8)},
    {"privatizer": Gaussian(epsilon=50.0, noise="distributed"), "aggregator": SHARED},
    {"privatizer": Skellam(epsilon=50.0, noise="distributed"), "aggregator": SHARED},
]


@pytest.mark.parametrize(
    "changes",
    [HONEST[0], *(pytest.param(changes, marks=pytest.mark.slow) for changes in HONEST[1:])],
    ids=str,
)
def test_an_honest_clip_is_not_refuted(changes: dict[str, Any]) -> None:
    finding = audit_clip(prepared(**changes))
    assert not finding.is_refuted, finding
    assert "replaced, by at most" in finding.observation


def test_clip_of_small_networks_only_is_detected() -> None:
    finding = audit_clip(prepared(privatizer=Broken(Gaussian(epsilon=50.0), ClipsBySize)))
    assert finding.is_refuted, finding


class Tokens(nn.Module):
    """Rows of pixels on the first axis; eight of them, as many as one of the audit's batches."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.layer = nn.Linear(spec.size[-1], len(spec.classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x[:, 0].transpose(0, 1)).mean(0)  # type: ignore[no-any-return]


@frozen
class TokensFirst:
    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def build(self, spec: DataSpec, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return Tokens(spec)


@pytest.mark.slow
def test_clip_confusing_tokens_with_examples_is_detected() -> None:
    honest = Gaussian(epsilon=50.0, clip_norm=0.01)
    assert not audit_clip(prepared(model=TokensFirst(), privatizer=honest)).is_refuted
    finding = audit_clip(prepared(model=TokensFirst(), privatizer=Broken(honest, ReadsBySize)))
    assert finding.is_refuted, finding


def test_clip_audit_skips_site_level_privatizer() -> None:
    finding = audit_clip(prepared(privatizer=Gaussian(unit="site", epsilon=50.0)))
    assert not finding.is_refuted
    assert "whole update" in finding.procedure
