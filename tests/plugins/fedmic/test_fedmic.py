"""FedMIC: what is kept of a matrix, whose loss moves whom, and what stays at a site."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from cohortium import Federation, parameters
from cohortium.errors import CohortiumError, PrivacyError
from cohortium.plugin import Model
from cohortium.testing import samples
from cohortium_cnn import CNN
from cohortium_fedmic import FedMIC
from cohortium_fedmic._decomposition import low_rank_update, truncated_svd
from cohortium_fedmic._distillation import MIN_SCALE, TeacherStudentPair
from cohortium_resnet9 import ResNet9


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 9), st.floats(0.5, 1.0))
def test_truncated_svd_keeps_fewest_values_for_energy(
    seed: int, rows: int, columns: int, energy: float
) -> None:
    matrix = torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, columns)))
    kept = truncated_svd(matrix, energy=energy)
    squares = torch.linalg.svdvals(matrix).square()
    rank = int(torch.linalg.matrix_rank(kept))
    assert kept.square().sum() >= energy * squares.sum() * (1 - 1e-9)
    assert squares[: rank - 1].sum() < energy * squares.sum()
    # What is left out is orthogonal to what is kept.
    assert float((kept * (matrix - kept)).sum()) == pytest.approx(0, abs=1e-9)


def test_low_rank_update_keeps_vectors_and_statistics() -> None:
    net = samples.network(batch_norm=True)
    update = torch.randn(parameters.length(net), generator=torch.Generator().manual_seed(0))
    found = low_rank_update(update, net, energy=0.5)
    same = found == update
    position = 0
    for parameter in parameters.trainable(net):
        part = same[position : position + parameter.numel()]
        assert bool(part.all()) == (parameter.ndim == 1)
        position += parameter.numel()
    assert same[position:].all()
    zeros = torch.zeros_like(update)
    assert torch.equal(low_rank_update(zeros, net, energy=0.95), zeros)


def _pair() -> tuple[TeacherStudentPair, torch.Tensor, torch.Tensor]:
    pair = TeacherStudentPair(samples.network(), samples.network())
    with torch.no_grad():
        for n, parameter in enumerate(pair.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(n))
            parameter.add_(noise, alpha=0.3)
    images = torch.rand(
        5, 3, samples.SIDE, samples.SIDE, generator=torch.Generator().manual_seed(9)
    )
    return pair, images, torch.arange(5) % 4


@torch.no_grad()
def test_losses_are_those_of_the_formulas() -> None:
    pair, images, labels = _pair()
    found = pair(images, labels).detach()
    for i in range(5):
        h = {}
        for who in ("student", "teacher"):
            net = getattr(pair, who)
            x = images[i : i + 1]
            for layer in list(net)[:-1]:
                x = layer(x)
            h[who] = x[0], net[-1](x)[0]
        (h_s, z_s), (h_t, z_t) = h["student"], h["teacher"]
        p_s, p_t = z_s.softmax(0), z_t.softmax(0)
        ce_s, ce_t = -p_s[labels[i]].log(), -p_t[labels[i]].log()
        mse = (h_t - pair.map.weight @ h_s).square().mean()
        scale = max(float(ce_s + ce_t), MIN_SCALE)
        kl_ts = (p_t * (p_t.log() - p_s.log())).sum()
        kl_st = (p_s * (p_s.log() - p_t.log())).sum()
        l_t = ce_t + kl_st / scale + mse / scale
        l_s = ce_s + kl_ts / scale + mse / scale
        assert float(found[i]) == pytest.approx(float(l_t + l_s), rel=1e-5)


def test_each_network_descends_its_own_loss() -> None:
    """The student's gradient is that of L_s with the teacher held still."""
    pair, images, labels = _pair()
    pair(images, labels).sum().backward()
    assert isinstance(pair.student, nn.Sequential)
    weight = pair.student[-1].weight
    assert isinstance(weight, nn.Parameter)
    assert weight.grad is not None
    found = weight.grad.clone()
    pair.zero_grad()
    z_s, z_t = pair.student(images), pair.teacher(images).detach()
    ce_s = functional.cross_entropy(z_s, labels, reduction="none")
    ce_t = functional.cross_entropy(z_t, labels, reduction="none")
    p_t = z_t.softmax(1)
    kl = (p_t * (z_t.log_softmax(1) - z_s.log_softmax(1))).sum(1)
    # The features do not depend on the last layer, so their term does not move it.
    (ce_s + kl / (ce_s + ce_t).detach()).sum().backward()
    assert torch.allclose(found, weight.grad, atol=1e-5)


@frozen
class NoLinear:
    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def build(self, spec: object, seed: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def tiny(**changes: object) -> Federation:
    parts: dict[str, object] = {
        "dataset": "phantom", "model": "cnn", "privatizer": "none", "aggregator": "plain",
        "trainer": FedMIC(local_steps=3, learning_rate=0.1), "sites": 4, "rounds": 2, "threads": 1,
    }  # fmt: skip
    from cohortium_phantom import Phantom

    parts["dataset"] = Phantom(examples=160, validation=16, test=40)
    return Federation(**(parts | changes))  # type: ignore[arg-type]


def test_fedmic_runs_with_and_without_privacy() -> None:
    from cohortium_gaussian import Gaussian

    assert tiny().run().accuracy is not None
    private = tiny(privatizer=Gaussian(epsilon=6.0, delta=1e-3, clip_norm=1.0)).run()
    assert private.guarantee is not None
    assert private.guarantee.epsilon == pytest.approx(6, rel=0.01)
    shared = Gaussian(epsilon=6.0, delta=1e-3, noise="distributed")
    with pytest.raises(PrivacyError, match="one gradient a round"):
        tiny(privatizer=shared, aggregator="secagg", min_contributors=4, max_colluding=1).prepare()


def test_teacher_learns_and_stays_at_site() -> None:
    ready = tiny().prepare()
    run_config = ready.run_config
    net = run_config.network()
    from cohortium.testing.probes import ProbePrivatizer, train

    trainer = FedMIC(local_steps=2, learning_rate=0.1)
    batches = [np.arange(8), np.arange(8, 16)]
    state: dict[str, torch.Tensor] = {}
    states = []
    for round_ in range(2):
        trained = train(trainer, ProbePrivatizer(batches, fill=None), round=round_, state=state)
        state = dict(trained.state)
        states.append(state)
    changed = [k for k in states[0] if not torch.equal(states[0][k], states[1][k])]
    assert "map" in changed
    assert any(k.startswith("teacher.") for k in changed)
    own = trainer.personalize(samples.network(), state)
    for name, tensor in own.state_dict().items():
        assert torch.equal(tensor, state[f"teacher.{name}"])
    fresh = trainer.personalize(net, {})
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), net.parameters(), strict=True))


def test_a_teacher_may_be_larger_than_the_student() -> None:
    from cohortium.testing.probes import ProbePrivatizer, train

    trainer = FedMIC(local_steps=2, learning_rate=0.1, teacher=CNN(width=6))
    first = train(trainer, ProbePrivatizer([np.arange(8)], fill=None))
    again = train(trainer, ProbePrivatizer([np.arange(8)], fill=None), round=1, state=first.state)
    student, images = samples.network(), torch.rand(2, 3, samples.SIDE, samples.SIDE)
    assert len(again.vector) == parameters.length(student)
    own = trainer.personalize(student, again.state)
    assert parameters.length(own) > 5 * parameters.length(student)
    assert own(images).shape == (2, 4)
    for name, tensor in own.state_dict().items():
        assert torch.equal(tensor, again.state[f"teacher.{name}"])
    assert again.state["map"].shape[1] == 16
    assert trainer.personalize(student, {}) is student


@pytest.mark.parametrize(
    ("model", "teacher", "why"),
    [
        ("descriptor", CNN(), "teacher takes images"),
        ("cnn", ResNet9(width=2), "mixes the examples"),
    ],
)
def test_impossible_teacher_is_refused_before_run(model: str, teacher: Model, why: str) -> None:
    with pytest.raises(CohortiumError, match=why):
        tiny(model=model, trainer=FedMIC(teacher=teacher)).prepare()


@pytest.mark.slow
def test_sites_are_scored_with_their_own_models(tmp_path: Path) -> None:
    trainer = FedMIC(local_steps=10, learning_rate=0.1)
    parts = {"holdout_fraction": 0.25, "partitioner": "dirichlet", "rounds": 3, "threads": 1}
    federation = tiny(trainer=trainer, **parts)
    ready = federation.prepare()
    assert sum(map(len, ready.partition)) == ready.run_config.spec.examples < 160
    for indices, held in zip(ready.partition, ready.holdout, strict=True):
        assert not set(indices) & set(held)
        assert len(held) == (len(indices) + len(held)) // 4
    federation.run(tmp_path / "run")
    rows = json.loads((tmp_path / "run" / "simulation" / "holdout_scores.json").read_text())
    assert [row["images"] for row in rows] == [len(held) for held in ready.holdout if len(held)]
    assert any(row["score"] != row["personal_score"] for row in rows)
    tiny(trainer="fedavg", **parts).run(tmp_path / "plain")
    rows = json.loads((tmp_path / "plain" / "simulation" / "holdout_scores.json").read_text())
    assert all(row["score"] == row["personal_score"] for row in rows)
    assert not (tiny().prepare().holdout[0].size)


def test_whole_patients_are_held_out() -> None:
    from cohortium_phantom import Phantom

    data = Phantom(examples=240, validation=0, test=20, images_per_patient=4)
    ready = tiny(dataset=data, holdout_fraction=0.3).prepare()
    patients = ready.splits.train.patients
    assert patients is not None
    for indices, held in zip(ready.partition, ready.holdout, strict=True):
        assert len(held)
        assert not set(patients[indices]) & set(patients[held])
    assert ready.run_config.spec.patients == len(set(patients[np.concatenate(ready.partition)]))


def test_model_without_linear_layer_is_refused() -> None:
    with pytest.raises(CohortiumError, match="last linear layer"):
        tiny(model=NoLinear()).prepare()
