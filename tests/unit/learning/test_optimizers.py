"""Options of optimizers: defaults for those that have them, and refusals before a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cohortium import Federation
from cohortium.errors import StudyError
from cohortium.learning.optimizers import make_optimizer
from cohortium.privacy import accounting
from cohortium_fedavg import FedAvg, FedProx
from cohortium_fedmic import FedMIC
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from cohortium_phantom import Phantom
from cohortium_skellam import Skellam
from tests.support.federations import tiny_federation


@pytest.fixture
def no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail every search for noise."""

    def search(*_: Any, **__: Any) -> None:
        pytest.fail("the noise was searched for before the refusal")

    monkeypatch.setattr(accounting, "calibrate_noise_multiplier", search)
    monkeypatch.setattr("cohortium_skellam._plan.calibrated", search)


def study(**changes: Any) -> Federation:
    return tiny_federation(
        dataset=Phantom(examples=120, validation=0, test=12),
        privatizer=Gaussian(epsilon=6.0, noise="local"),
        **changes,
    )


@pytest.mark.parametrize("name", ["sgd", "SGD", "rmsprop"])
def test_momentum_stays_default_where_it_exists(name: str) -> None:
    assert FedSGD(optimizer=name) == FedSGD(optimizer=name, optimizer_options={"momentum": 0.9})


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "NAdam", "Rprop"])
def test_made_optimizer_steps_as_torch_would(name: str) -> None:
    def weights(optimizer_of: Callable[[torch.nn.Parameter], torch.optim.Optimizer]) -> list[float]:
        weight = torch.nn.Parameter(torch.arange(5.0))
        optimizer = optimizer_of(weight)
        for _ in range(3):
            weight.grad = weight.detach().sin()
            optimizer.step()
        found: list[float] = weight.tolist()
        return found

    torchs = getattr(torch.optim, name)
    assert weights(lambda p: make_optimizer(name, [p], learning_rate=0.1, options={})) == weights(
        lambda p: torchs([p], lr=0.1)
    )


def test_loop_over_tensors_is_chosen_once_on_a_processor() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    made = make_optimizer("sgd", [weight], learning_rate=0.1, options={})
    given = make_optimizer("sgd", [weight], learning_rate=0.1, options={"foreach": True})
    assert [each.defaults["foreach"] for each in (made, given)] == [False, True]


def test_adam_runs_without_options() -> None:
    trainer = FedSGD(optimizer="adam", learning_rate=0.01)
    assert trainer.optimizer_options == {}
    assert tiny_federation(trainer=trainer, rounds=1).run().rounds == 1


def test_adam_study_of_toml_is_planned(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(
        '[trainer]\nname = "fedsgd"\noptimizer = "adam"\n[privatizer]\nname = "none"\n'
        "[dataset]\nexamples = 120\nvalidation = 0\ntest = 8\n"
    )
    federation = Federation.read(path)
    assert federation.prepare().run_config.trainer == FedSGD(optimizer="adam")
    (tmp_path / "again.toml").write_text(federation.as_toml())
    assert Federation.read(tmp_path / "again.toml") == federation


@pytest.mark.usefixtures("no_search")
@pytest.mark.parametrize(
    ("trainer", "key"),
    [
        (FedSGD(optimizer="adam", optimizer_options={"momentum": 0.9}), "optimizer_options"),
        (FedAvg(optimizer="adam", optimizer_options={"momentum": 0.9}), "optimizer_options"),
        (FedProx(optimizer="adam", optimizer_options={"momentum": 0.9}), "optimizer_options"),
        (FedMIC(optimizer="adam", optimizer_options={"momentum": 0.9}), "optimizer_options"),
        (
            FedAvg(server_optimizer="adam", server_optimizer_options={"momentum": 0.9}),
            "server_optimizer_options",
        ),
        (
            FedMIC(server_optimizer="adam", server_optimizer_options={"momentum": 0.9}),
            "server_optimizer_options",
        ),
    ],
)
def test_unknown_option_is_refused_before_search(trainer: Any, key: str, tmp_path: Path) -> None:
    words = (
        rf"^trainer\.{key}: the optimizer adam has no option momentum; its options are amsgrad, "
        r".*eps, .*weight_decay\.$"
    )
    with pytest.raises(StudyError, match=words):
        study(trainer=trainer).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_search")
@pytest.mark.parametrize(
    ("trainer", "words"),
    [
        (FedSGD(optimizer="adm"), "torch.optim has no optimizer 'adm'; did you mean adam"),
        (FedSGD(optimizer_options={"nesterov": True}), "optimizer 'sgd': Nesterov momentum"),
        (FedAvg(server_optimizer="sdg"), "torch.optim has no optimizer 'sdg'"),
    ],
)
def test_impossible_optimizer_is_refused_before_search(trainer: Any, words: str) -> None:
    with pytest.raises(StudyError, match=words):
        study(trainer=trainer).prepare()


@pytest.mark.usefixtures("no_search")
@pytest.mark.parametrize(
    ("trainer", "privatizer"),
    [
        (FedAvg(mixup_alpha=0.4), Gaussian(epsilon=6.0, noise="local")),
        (FedSGD(mixup_alpha=0.4), Skellam(epsilon=6.0)),
    ],
)
def test_mixup_is_refused_before_search(trainer: Any, privatizer: Any) -> None:
    federation = tiny_federation(
        trainer=trainer, privatizer=privatizer, aggregator="secagg", max_colluding=1,
        min_contributors=4,
    )  # fmt: skip
    with pytest.raises(StudyError, match="depends on two patients"):
        federation.prepare()
