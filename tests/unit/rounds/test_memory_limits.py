"""What a hospital's machine may be asked for is settled before anything as large is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cohortium.data.examples import DataSpec
from cohortium.deployment import rehearsal
from cohortium.deployment.site_config import SiteConfig
from cohortium.deployment.site_policy import SitePolicy
from cohortium.errors import RefusalError
from cohortium.plugin import Multiclass
from cohortium.rounds import build_run_config, network_size
from cohortium_cnn import CNN
from cohortium_descriptor import Descriptor
from cohortium_fedsgd import FedSGD
from cohortium_phantom import Phantom
from cohortium_pretrained import Pretrained
from cohortium_resnet9 import ResNet9
from tests.support.federations import tiny_federation

SPEC = DataSpec(channels=1, size=(8, 8), task=Multiclass(("a", "b", "c")), examples=240)

FLOORS: dict[str, Any] = {
    "epsilon": 6.0, "delta": 1e-5, "unit": "example", "against": "everyone",
    "insecure_rehearsal": True,
}  # fmt: skip


class Ledgered:
    """Counts the values that torch sets aside on a real device."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = 0
        parameter = torch.nn.Parameter

        def counted(data: Any = None, *args: Any, **kwargs: Any) -> Any:
            made = parameter(data, *args, **kwargs)
            if made.device.type != "meta":
                self.most = max(self.most, made.numel())
            return made

        monkeypatch.setattr(torch.nn.parameter, "Parameter", counted)
        monkeypatch.setattr(torch.nn.modules.conv, "Parameter", counted)
        monkeypatch.setattr(torch.nn.modules.linear, "Parameter", counted)


@pytest.fixture
def allocated(monkeypatch: pytest.MonkeyPatch) -> Ledgered:
    return Ledgered(monkeypatch)


def agree(policy: SitePolicy, **changes: Any) -> None:
    build_run_config.build_run_config(
        tiny_federation(**changes), SPEC, session=b"sixteen bytes id", directory=None, policy=policy
    )


@pytest.mark.parametrize(
    ("ceilings", "changes", "code"),
    [
        ({}, {"model": CNN(width=4096)}, "policy.max_parameters"),
        ({"max_parameters": 1000}, {"model": CNN(width=16)}, "policy.max_parameters"),
        ({"max_memory": 1e-4}, {"model": CNN(width=16)}, "policy.max_memory"),
        ({"max_rounds": 1000}, {"model": CNN(width=64), "rounds": 1001}, "policy.max_rounds"),
        ({}, {"model": CNN(width=64), "rounds": 999, "retries": 2}, "policy.max_rounds"),
        ({"max_sites": 2}, {"model": CNN(width=64)}, "policy.max_sites"),
    ],
)
def test_refused_study_allocates_no_network(
    ceilings: dict[str, Any], changes: dict[str, Any], code: str, allocated: Ledgered
) -> None:
    policy = SitePolicy(**FLOORS, **ceilings)
    with pytest.raises(RefusalError) as refusal:
        agree(policy, **changes)
    assert refusal.value.code == code
    assert allocated.most == 0


def test_study_within_limits_allocates_network(allocated: Ledgered) -> None:
    agree(SitePolicy(**FLOORS), model=CNN(width=16))
    assert allocated.most > 0


def test_copies_count_in_the_estimate() -> None:
    one, many = (network_size.estimate_memory(CNN(), SPEC, copies=copies) for copies in (1, 128))
    assert many > 20 * one
    policy = SitePolicy(**FLOORS, max_memory=2 * one / 2**30)
    agree(policy, model=CNN(), trainer=FedSGD(sampling_rate=1.0))
    with pytest.raises(RefusalError, match="training takes at least"):
        agree(policy, model=CNN(), trainer=FedSGD(sampling_rate=1.0, augmentation_multiplicity=128))


def test_policy_is_checked_before_building_network(allocated: Ledgered) -> None:
    with pytest.raises(RefusalError) as refusal:
        agree(SitePolicy(**{**FLOORS, "insecure_rehearsal": False}), model=CNN(width=64))
    assert refusal.value.code == "policy.epsilon"
    assert allocated.most == 0


def test_parameter_count_needs_no_public_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Phantom, "load", lambda _: pytest.fail("public images were drawn"))
    for model, bare in (
        (Pretrained(images=Phantom(), width=8), None),
        (Pretrained(images=Phantom(), network=ResNet9(width=4), trainable="everything"), None),
        (Descriptor(center_on=Phantom()), None),
        (CNN(width=8), CNN(width=8)),
    ):
        found = network_size.count_parameters(model, SPEC)
        assert found
        if bare is not None:
            assert found == sum(p.numel() for p in bare.build(SPEC, 1).parameters())


def test_data_dependent_network_has_unknown_size() -> None:
    class Stubborn:
        def preprocess(self, images: torch.Tensor) -> torch.Tensor:
            return images

        def build(self, spec: DataSpec, seed: int) -> torch.nn.Module:
            return torch.nn.Linear(int(torch.ones(1).item()), 3)

    assert network_size.count_parameters(Stubborn(), SPEC) is None
    with pytest.raises(RefusalError, match="the study's model has"):
        agree(SitePolicy(**FLOORS, max_parameters=10), model=CNN())


def test_rehearsal_site_policy_admits_its_study(tmp_path: Path) -> None:
    ready = tiny_federation(rounds=1500).prepare()
    rehearsal.write_rehearsal(ready, tmp_path / "new", engine="inline")
    policy = SiteConfig.read(tmp_path / "new" / "site-0" / "site.toml").policy
    assert policy.max_rounds == 1500
    assert policy.max_sites == 1000
    policy.admit_terms(sites=ready.run_config.federation_spec.sites, attempts=1500)
