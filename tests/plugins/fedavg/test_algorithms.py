"""The trainers of local steps, each held to the formulas of its paper in a loop of its own.

A site's batch is all of its data, so a step is a function of the weights alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve
from torch import Tensor
from torch.nn import functional

from cohortium import parameters
from cohortium.errors import StoppedError, StudyError, TooFewSitesError
from cohortium.messages import codec
from cohortium.messages.run import Refusal, Request
from cohortium.plugin import RoundCompleted
from cohortium.rounds.coordinator import Coordinator
from cohortium.storage import tensor_tree
from cohortium_fedavg import (
    Ditto,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedBN,
    FedDyn,
    FedPer,
    FedYogi,
    Scaffold,
)
from cohortium_gaussian import Gaussian
from cohortium_module import Module
from cohortium_none import NoPrivacy
from cohortium_resnet9 import ResNet9
from tests.support.federations import FaultyEngine, RecordingObserver, tiny_federation

RATE, ROUNDS, SITES = 0.3, 4, 3
WHOLE: dict[str, Any] = {"batch_size": 1 << 20, "learning_rate": RATE}
"""A batch of all of a site's data."""


def study(trainer: Any, **changes: Any) -> Any:
    given = {
        "trainer": trainer,
        "model": Module(module="tests.support.federations:SmallConvNet"),
        "partitioner": "dirichlet",
        "sites": SITES,
        "rounds": ROUNDS,
        "privatizer": NoPrivacy(quantization_step=2.0**-30),
    }
    return tiny_federation(**(given | changes))


class Twin:
    """The same sites, without any of the code under test: their gradients at given weights."""

    def __init__(self, federation: Any) -> None:
        prepared = federation.prepare()
        run_config = prepared.run_config
        self.net = run_config.network()
        self.first = parameters.flatten(self.net)
        self.data = []
        for rows in prepared.partition:
            own = prepared.splits.train.select(rows)
            images = run_config.model.preprocess(torch.from_numpy(own.images).float() / 255)
            self.data.append((images, torch.from_numpy(own.labels)))
        sizes = torch.tensor([float(len(labels)) for _, labels in self.data])
        self.shares = sizes / sizes.sum()

    def gradient(self, site: int, weights: Tensor) -> Tensor:
        parameters.load(self.net, weights)
        self.net.zero_grad()
        images, labels = self.data[site]
        loss = functional.cross_entropy(self.net(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return parameters.flatten_gradients(self.net, before=weights)

    def mean(self, vectors: list[Tensor]) -> Tensor:
        return sum(
            (share * vector for share, vector in zip(self.shares, vectors, strict=True)),
            torch.zeros_like(vectors[0]),
        )


def weights_of(federation: Any, folder: Path) -> Tensor:
    federation.run(folder)
    state = tensor_tree.read(folder / "checkpoint" / "state.safetensors")
    net = federation.prepare().run_config.network()
    parameters.load_state_dict(net, state["server"]["weights"])
    return parameters.flatten(net)


def scaffold(twin: Twin, steps: int) -> Tensor:
    """SCAFFOLD, option II (Karimireddy et al. 2020, algorithm 1), of full participation."""
    weights, controls = twin.first, [torch.zeros_like(twin.first) for _ in range(SITES)]
    control = torch.zeros_like(weights)
    for _ in range(ROUNDS):
        updates, changes = [], []
        for site in range(SITES):
            local = weights
            for _ in range(steps):
                local = local - RATE * (twin.gradient(site, local) - controls[site] + control)
            new = controls[site] - control + (weights - local) / (steps * RATE)
            updates.append(local - weights)
            changes.append(new - controls[site])
            controls[site] = new
        weights, control = weights + twin.mean(updates), control + twin.mean(changes)
    return weights


def feddyn(twin: Twin, steps: int, alpha: float = 0.5) -> Tensor:
    """FedDyn (Acar et al. 2021, algorithm 1), of full participation."""
    weights, held = twin.first, [torch.zeros_like(twin.first) for _ in range(SITES)]
    sum_ = torch.zeros_like(weights)
    for _ in range(ROUNDS):
        found = []
        for site in range(SITES):
            local = weights
            for _ in range(steps):
                pull = alpha * (local - weights)
                local = local - RATE * (twin.gradient(site, local) - held[site] + pull)
            held[site] = held[site] - alpha * (local - weights)
            found.append(local)
        sum_ = sum_ - alpha * (twin.mean(found) - weights)
        weights = twin.mean(found) - sum_ / alpha
    return weights


def adaptive(rule: str) -> Callable[[Twin, int], Tensor]:
    """FedAdagrad, FedYogi and FedAdam (Reddi et al. 2021, algorithm 2)."""

    def play(twin: Twin, steps: int) -> Tensor:
        rate, tau, second = 0.05, 0.01, 0.9
        first = 0.0 if rule == "adagrad" else 0.8
        weights = twin.first
        mean, square = torch.zeros_like(weights), torch.full_like(weights, tau**2)
        for _ in range(ROUNDS):
            updates = []
            for site in range(SITES):
                local = weights
                for _ in range(steps):
                    local = local - RATE * twin.gradient(site, local)
                updates.append(local - weights)
            update = twin.mean(updates)
            mean = first * mean + (1 - first) * update
            square = {
                "adagrad": square + update**2,
                "adam": second * square + (1 - second) * update**2,
                "yogi": square - (1 - second) * update**2 * torch.sign(square - update**2),
            }[rule]
            weights = weights + rate * mean / (square.sqrt() + tau)
        return weights

    return play


def fedavgm(twin: Twin, steps: int) -> Tensor:
    """Server momentum (Hsu et al. 2019)."""
    weights, speed = twin.first, torch.zeros_like(twin.first)
    for _ in range(ROUNDS):
        updates = []
        for site in range(SITES):
            local = weights
            for _ in range(steps):
                local = local - RATE * twin.gradient(site, local)
            updates.append(local - weights)
        speed = 0.5 * speed + twin.mean(updates)
        weights = weights + speed
    return weights


ADAPTIVE: dict[str, Any] = {"server_learning_rate": 0.05, "tau": 0.01, "local_steps": 2}


@pytest.mark.parametrize(
    ("trainer", "reference"),
    [
        (Scaffold(local_steps=2, **WHOLE), scaffold),
        (Scaffold(local_epochs=2, **WHOLE), scaffold),
        (FedDyn(local_steps=2, alpha=0.5, **WHOLE), feddyn),
        (FedAvgM(local_steps=2, server_momentum=0.5, **WHOLE), fedavgm),
        (FedAdagrad(**ADAPTIVE, **WHOLE), adaptive("adagrad")),
        (FedAdam(**ADAPTIVE, beta_1=0.8, beta_2=0.9, **WHOLE), adaptive("adam")),
        (FedYogi(**ADAPTIVE, beta_1=0.8, beta_2=0.9, **WHOLE), adaptive("yogi")),
    ],
    ids=lambda given: type(given).__name__ if hasattr(given, "workload") else "",
)
def test_weights_are_those_of_the_paper(tmp_path: Path, trainer: Any, reference: Any) -> None:
    federation = study(trainer)
    wanted = reference(Twin(federation), 2)
    found = weights_of(federation, tmp_path / "run")
    start = Twin(federation).first
    assert (found - start).abs().max() > 0.05
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    plain = weights_of(study(FedAvg(local_steps=2, **WHOLE)), tmp_path / "plain")
    assert (found - plain).abs().max() > 1e-3


def test_scaffold_releases_a_second_vector_only_where_steps_differ() -> None:
    def length(trainer: Any) -> int:
        return int(study(trainer).prepare().run_config.plan.length)

    plain, network = length(FedAvg(**WHOLE)), len(Twin(study(FedAvg(**WHOLE))).first)
    assert length(Scaffold(local_steps=2, **WHOLE)) == plain
    assert length(Scaffold(local_epochs=2, **WHOLE)) == plain + network


def checkpoint_of(folder: Path) -> Any:
    return tensor_tree.read(folder / "checkpoint" / "state.safetensors")["server"]


def ensure_equal(one: Any, other: Any) -> None:
    assert one["trainer"].abs().max() > 0
    assert torch.equal(one["trainer"], other["trainer"])
    for name, tensor in one["weights"].items():
        assert torch.equal(tensor, other["weights"][name])


DRIFTING = {"trainer": Scaffold(local_epochs=2, batch_size=16), "aggregator": "secagg", "sites": 6}


def test_server_state_continues_after_a_stop(tmp_path: Path) -> None:
    federation = study(**DRIFTING)
    federation.run(tmp_path / "whole")
    rounds = RecordingObserver()
    with pytest.raises(StoppedError):
        federation.run(
            tmp_path / "part", observers=[rounds], stop=lambda: bool(rounds.of(RoundCompleted))
        )
    assert checkpoint_of(tmp_path / "part")["trainer"].abs().max() > 0
    federation.resume(tmp_path / "part")
    ensure_equal(checkpoint_of(tmp_path / "whole"), checkpoint_of(tmp_path / "part"))


@pytest.mark.slow
def test_server_state_is_equal_under_another_engine(tmp_path: Path) -> None:
    study(**DRIFTING).run(tmp_path / "inline")
    study(**DRIFTING, engine="ray").run(tmp_path / "ray")
    ensure_equal(checkpoint_of(tmp_path / "inline"), checkpoint_of(tmp_path / "ray"))


def test_site_refuses_a_server_state_of_another_shape() -> None:
    federation = study(Scaffold(local_steps=1))
    engine = FaultyEngine(lambda _count, _site, reply: reply)
    evolve(federation, engine=engine, rounds=1).run()
    broadcast, own = engine.log[0]
    honest = codec.decode(broadcast, Request)
    assert honest.server_state is not None
    prepared = federation.prepare()
    again = evolve(prepared, run_config=evolve(prepared.run_config, session=honest.session))
    site = again.site_factory(0).create()
    nans = np.full(len(honest.server_state) // 4, np.nan, dtype="<f4").tobytes()
    for wrong in (None, honest.server_state[:-4], nans):
        request = Request(
            session=honest.session,
            round=honest.round,
            attempt=honest.attempt,
            stage=honest.stage,
            weights=honest.weights,
            body=honest.body,
            server_state=None if wrong is None else memoryview(wrong),
        )
        refusal = codec.decode(site.answer(codec.encode(request), own[0]), Refusal)
        assert "server state" in refusal.reason
    assert b"server state" not in site.answer(broadcast, own[0])


def test_failed_attempt_leaves_the_server_state() -> None:
    run_config = study(Scaffold(local_steps=1), min_contributors=2).prepare().run_config
    coordinator = Coordinator(run_config)
    assert coordinator.server_state is not None
    before = coordinator.server_state.clone()
    coordinator.begin_attempt(0, 0, (0, 1, 2))
    coordinator.next_requests()
    with pytest.raises(TooFewSitesError):
        coordinator.finish_attempt()
    assert torch.equal(coordinator.server_state, before)


@pytest.mark.parametrize("trainer", [Scaffold(local_epochs=1), Scaffold(local_steps=2), FedDyn()])
@pytest.mark.parametrize(
    "privatizer",
    [
        Gaussian(epsilon=50, unit="example"),
        Gaussian(epsilon=50, unit="site", noise="distributed"),
    ],
    ids=["examples", "sites"],
)
def test_control_variates_train_under_privacy(trainer: Any, privatizer: Any) -> None:
    federation = study(
        evolve(trainer, batch_size=16),
        privatizer=privatizer,
        model="cnn",
        aggregator="secagg",
        sites=6,
        rounds=2,
        min_contributors=5,
        max_colluding=1,
    )
    result = federation.run()
    assert result.guarantee is not None
    assert result.guarantee.epsilon <= 50


def test_gradient_with_further_numbers_is_refused() -> None:
    class Odd(Scaffold):
        def workload(self, federation_spec: Any) -> Any:
            return evolve(super().workload(federation_spec), output="gradient")

    with pytest.raises(StudyError, match="releases a gradient and"):
        study(Odd(local_epochs=1)).prepare()


@pytest.mark.parametrize(
    ("trainer", "words"),
    [
        (Scaffold(optimizer="adam"), "only plain SGD"),
        (Scaffold(optimizer_options={"momentum": 0.9}), "only plain SGD"),
        (FedDyn(participation=0.5), "set it to 1"),
        (FedPer(personal_layers=("hed",)), "the network has no layer 'hed'"),
        (FedPer(personal_layers=("0", "4")), "none be shared"),
        (FedBN(), "the network has none"),
    ],
)
def test_trainer_that_does_not_fit_is_refused_before_a_run(trainer: Any, words: str) -> None:
    with pytest.raises(StudyError, match=words):
        study(trainer).prepare()


def site_states(folder: Path, sites: int) -> list[dict[str, Tensor]]:
    return [
        tensor_tree.read(folder / "trainer_state" / f"site-{site}.safetensors")["after"]
        for site in range(sites)
    ]


def test_fedper_keeps_each_head_at_its_site(tmp_path: Path) -> None:
    federation = study(FedPer(learning_rate=RATE))
    start = Twin(federation).first
    found = weights_of(federation, tmp_path / "run")
    head = 16 * 4 + 4
    assert torch.equal(found[-head:], start[-head:])
    assert not torch.equal(found[:-head], start[:-head])
    states = site_states(tmp_path / "run", SITES)
    assert all(set(state) == {"partial.4.weight", "partial.4.bias"} for state in states)
    assert not torch.equal(states[0]["partial.4.weight"], states[1]["partial.4.weight"])


def test_fedbn_keeps_weights_and_statistics_at_each_site(tmp_path: Path) -> None:
    federation = study(FedBN(learning_rate=0.05), model=ResNet9(width=2, norm="batch"), rounds=1)
    federation.run(tmp_path / "run")
    names = set(site_states(tmp_path / "run", SITES)[0])
    assert any(name.endswith("running_mean") for name in names)
    assert all("conv" not in name for name in names)


def test_ditto_trains_each_site_s_own_network(tmp_path: Path) -> None:
    """Ditto (Li et al. 2021, algorithm 1), with one step of the own network a round."""
    pull = 0.7
    federation = study(Ditto(local_steps=2, own_pull=pull, **WHOLE))
    twin = Twin(federation)
    weights, own = twin.first, [twin.first for _ in range(SITES)]
    for round_ in range(ROUNDS):
        updates = []
        for site in range(SITES):
            local = weights
            for _ in range(2):
                local = local - RATE * twin.gradient(site, local)
            updates.append(local - weights)
            begin = own[site] if round_ else weights
            own[site] = begin - RATE * (twin.gradient(site, begin) + pull * (begin - weights))
        weights = weights + twin.mean(updates)
    found = weights_of(federation, tmp_path / "run")
    np.testing.assert_allclose(found, weights, atol=2e-5)
    plain = weights_of(study(FedAvg(local_steps=2, **WHOLE)), tmp_path / "plain")
    assert torch.equal(found, plain)
    for state, wanted in zip(site_states(tmp_path / "run", SITES), own, strict=True):
        np.testing.assert_allclose(state["own.ditto.model"], wanted, atol=2e-5)
