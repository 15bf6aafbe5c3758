"""Whatever a round would end in is found before anyone is charged for one."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import frozen
from torch import nn

from cohortium import parameters
from cohortium.errors import CohortiumError, StoppedError, StudyError
from cohortium.plugin import LocalResult, LocalTask, SitePrivatizer, attach_schedule
from cohortium.rounds.dry_run import dry_run
from cohortium.runs.run_directory import LEDGER
from cohortium.third_party import plugin_location
from cohortium_fedavg import FedAvg, FedProx
from cohortium_fedmic import FedMIC
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from cohortium_module import Module
from cohortium_skellam import Skellam
from tests.support.federations import SmallConvNet, tiny_federation


class Wide(nn.Module):
    """Pools, and computes in one type of numbers throughout."""

    kind = torch.float64

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(channels * 4, classes, dtype=self.kind)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(
            nn.functional.adaptive_avg_pool2d(x, 2).flatten(1).to(self.kind)
        )
        return out.abs() if out.is_complex() else out


class Half(Wide):
    kind = torch.bfloat16


class Complexed(Wide):
    kind = torch.complex64


class FrozenHalf(nn.Module):
    """What is not trained may be of any type."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Conv2d(channels, 4, 4, 4, dtype=torch.bfloat16)
        self.body.requires_grad_(requires_grad=False)
        self.head = nn.Linear(16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.body(x.to(torch.bfloat16)).float().flatten(1))
        return out


class Untold(nn.Module):
    """Fails in evaluation alone, and on weights that have been set alone."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.net = SmallConvNet(channels, classes)
        self.first: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.first.append(x)
        if self.first and not self.training:
            raise ValueError("I was trained.\nAnd more")
        return self.net(x)  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "test_rehearsal", sys.modules[__name__])


def module(name: str) -> Module:
    return Module(module=f"test_rehearsal:{name}")


PRIVATE = Gaussian(epsilon=8.0, delta=1e-3)
SITE_LEVEL = Gaussian(epsilon=8.0, delta=1e-3, unit="site")


@pytest.mark.parametrize("privatizer", ["none", PRIVATE], ids=["none", "gaussian"])
@pytest.mark.parametrize(("name", "kind"), [("Half", "bfloat16"), ("Complexed", "complex64")])
def test_unencodable_numbers_are_refused_before_charge(
    tmp_path: Path, name: str, kind: str, privatizer: Any
) -> None:
    study = tiny_federation(model=module(name), privatizer=privatizer)
    with pytest.raises(StudyError, match=rf"layer.weight of the network {name} is .* {kind}"):
        study.run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "parts",
    [
        {"trainer": FedAvg(server_optimizer="adam", server_learning_rate=0.05,
                average_last_fraction=0.5)},
        {"trainer": FedProx(mu=0.1), "privatizer": PRIVATE},
        {"trainer": FedSGD(average_last_fraction=0.5), "privatizer": Gaussian(
            epsilon=8.0, delta=1e-3, noise="distributed"), "aggregator": "secagg",
            "min_contributors": 5, "max_colluding": 1},
        {"trainer": FedSGD(), "privatizer": Skellam(epsilon=8.0, delta=1e-3),
            "aggregator": "secagg", "min_contributors": 5, "max_colluding": 1},
        {"trainer": FedAvg(), "privatizer": Gaussian(epsilon=8.0, unit="site")},
    ],
    ids=["adam", "fedprox", "shared", "skellam", "site"],
)  # fmt: skip
def test_a_network_in_double_precision_trains(tmp_path: Path, parts: dict[str, Any]) -> None:
    study = tiny_federation(model=module("Wide"), **parts)
    result = study.run(tmp_path / "run")
    assert result.rounds == study.rounds
    assert {weights.dtype for weights in result.weights.values()} == {torch.float64}


def test_a_frozen_part_may_be_of_any_type() -> None:
    assert tiny_federation(model=module("FrozenHalf"), privatizer=PRIVATE).run().rounds == 2


@frozen(kw_only=True)
class Hoarder(FedAvg):
    """Keeps what no file can hold."""

    def train(self, task: LocalTask, privatizer: SitePrivatizer) -> LocalResult:
        trained = super().train(task, privatizer)
        return LocalResult(vector=trained.vector, weight=trained.weight, state={"kept": 3.0})  # type: ignore[dict-item]


@frozen(kw_only=True)
class LateFailing(FedAvg):
    """Fails in the last round."""

    def train(self, task: LocalTask, privatizer: SitePrivatizer) -> LocalResult:
        if task.round == task.rounds - 1:
            raise IndexError("no such round")
        return super().train(task, privatizer)


@frozen(kw_only=True)
class Short(FedAvg):
    """Hands back less than the network has."""

    def train(self, task: LocalTask, privatizer: SitePrivatizer) -> LocalResult:
        trained = super().train(task, privatizer)
        return LocalResult(vector=trained.vector[:-1], weight=trained.weight)


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "closure": ({"trainer": FedAvg(server_optimizer="lbfgs")}, "the server's step.*closure"),
    "sparse": ({"trainer": FedAvg(server_optimizer="sparseadam")}, "SparseAdam"),
    "site": ({"trainer": FedAvg(optimizer="lbfgs")}, "a site's training.*closure"),
    "state": ({"trainer": Hoarder()}, "Hoarder.train of .* gave a dict, .* maps names to tensors"),
    "late": ({"trainer": LateFailing()}, "a site's training.*LateFailing.*IndexError: no such"),
    "short": ({"trainer": Short()}, r"Short.train .* of shape \(23779,\), .* of shape \(23780,\)"),
    "short, in the clear": (
        {"trainer": Short(), "privatizer": "none"},
        "Short.train of .* gave a Tensor",
    ),
    "types": ({"trainer": FedMIC(), "model": module("Wide")}, "a site's training.*Wide.*FedMIC"),
    "evaluation": ({"model": module("Untold")}, "Untold cannot be scored: ValueError: I was tr"),
}


@pytest.mark.parametrize("which", BROKEN)
def test_fault_ending_round_fails_dry_run(tmp_path: Path, which: str) -> None:
    parts, words = BROKEN[which]
    with pytest.raises(CohortiumError, match=words) as found:
        tiny_federation(**{"privatizer": SITE_LEVEL} | parts).run(tmp_path / "run")
    assert "\n" not in str(found.value)
    assert not (tmp_path / "run" / LEDGER).exists()


def test_resume_that_cannot_step_charges_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tiny_federation(privatizer=SITE_LEVEL, retries=3, rounds=3)
    with pytest.raises(StoppedError):
        study.run(tmp_path, stop=iter([False, True]).__next__)
    spent = (tmp_path / LEDGER).read_bytes()

    def unable(self: FedAvg, parameters: Any, rounds: int) -> Any:
        return attach_schedule(torch.optim.LBFGS(parameters), "constant", rounds)

    monkeypatch.setattr(FedAvg, "make_server_optimizer", unable)
    for _ in range(2):
        with pytest.raises(StudyError, match="the server's step"):
            study.resume(tmp_path)
    assert (tmp_path / LEDGER).read_bytes() == spent
    monkeypatch.undo()
    assert study.resume(tmp_path).rounds == 3


def test_dry_run_leaves_config_and_torch_unchanged() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run_config = tiny_federation(trainer=FedAvg(flips=True)).prepare().run_config
    untouched, weights = copy.copy(run_config), parameters.flatten(run_config.network())
    dry_run(run_config, run_config.network())
    assert untouched == run_config
    assert torch.equal(weights, parameters.flatten(run_config.network()))
    assert torch.equal(before, torch.get_rng_state())


def test_estimated_sizes_match_written_files(tmp_path: Path) -> None:
    study = tiny_federation(trainer=FedMIC(), rounds=3)
    sizes = study.prepare().run_config.sizes
    study.run(tmp_path / "run")
    (site, *_) = (tmp_path / "run" / "trainer_state").iterdir()
    server = tmp_path / "run" / "checkpoint" / "state.safetensors"
    assert 0 <= site.stat().st_size - sizes.site < 4096
    assert 0 <= server.stat().st_size - sizes.server < 8192


def test_dry_run_ignores_diverging_updates() -> None:
    # Its updates leave every bound at once; only the run itself may say so.
    hot = tiny_federation(
        trainer=FedAvg(learning_rate=1e6, optimizer_options={"weight_decay": 1e6})
    )
    assert parameters.length(hot.prepare().run_config.network()) > 0


class Misspelt(FedAvg):
    """A plugin's trainer with a fault of its own."""

    def train(self, task: LocalTask, privatizer: SitePrivatizer) -> LocalResult:
        task.nett.train()  # type: ignore[attr-defined]
        return super().train(task, privatizer)


def test_fault_of_a_trainer_is_shown_with_its_file_and_line() -> None:
    line = Misspelt.train.__code__.co_firstlineno + 1
    with pytest.raises(
        StudyError, match=rf"training.*no attribute 'nett' \(test_dry_run\.py, line {line}\)\.$"
    ):
        tiny_federation(trainer=Misspelt()).prepare()


def test_line_of_an_installed_plugin_is_found() -> None:
    """No file of the user's is in the traceback, so the plugin's last line is the place."""
    there = {"__name__": "their_plugin._part"}
    exec(compile("\ndef work():\n    return {}['no']\n", "/gone/_part.py", "exec"), there)
    work: Any = there["work"]
    try:
        work()
    except KeyError as error:
        # The frame of this test is the user's, and is left out.
        inner = error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
        assert plugin_location(inner, {"their_plugin"}) == " (_part.py, line 3)"
        assert plugin_location(inner, {"another"}) == ""
