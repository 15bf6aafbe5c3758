"""The head from moments: its release, its regression, and whole runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cohortium import Federation, Result
from cohortium.parameters import trainable
from cohortium.plugin import DataSpec, Multiclass, StudyError
from cohortium_descriptor import Descriptor
from cohortium_fedavg import FedAvg
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from cohortium_moments import Moments
from cohortium_moments._head import MomentsHead, _regression
from cohortium_multilabel import Multilabel
from cohortium_phantom import Phantom
from cohortium_plain import Plain
from cohortium_secagg import SecAgg
from tests.support.per_example_gradients import agree

CELLS = Phantom(examples=300, validation=0, test=60)
FEATURES = Descriptor(bins=4, edge_bins=2, radii=(0.5, 1.0))


def _head(features: int = 5, classes: int = 3, **options: float) -> MomentsHead:
    terms = {"norm": 2.0, "share": 0.3, "ridge": 0.1, **options}
    return MomentsHead(features, classes, **terms)


def _study(**changes: Any) -> Federation:
    whole: dict[str, Any] = {
        "dataset": CELLS,
        "model": Moments(features=FEATURES),
        "trainer": FedSGD(sampling_rate=1.0, statistics_rounds=1),
        "privatizer": "none",
        "aggregator": "plain",
        "sites": 3,
        "rounds": 1,
        "evaluate_every": 0,
        **changes,
    }
    return Federation(**whole)


@given(
    scale=st.floats(0, 1e6), share=st.floats(1e-6, 0.999999), label=st.integers(0, 2),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_release_of_one_example_has_norm_one_at_most(
    scale: float, share: float, label: int, seed: int
) -> None:
    head = _head(share=share)
    row = torch.randn(1, 5, generator=torch.Generator().manual_seed(seed)) * scale
    head.statistics_loss(row, torch.tensor([label])).sum().backward()  # type: ignore[no-untyped-call]
    grads = [p.grad for p in trainable(head) if p.grad is not None]
    norm = torch.cat([g.flatten() for g in grads]).norm()
    assert float(norm) <= 1 + 1e-5
    if float(row.norm()) >= 2:
        assert float(norm) == pytest.approx(1, abs=1e-5)


def test_clipped_sum_of_moments_matches_definition() -> None:
    head = _head().double()
    rows = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(7) % 3

    class Loss(torch.nn.Module):
        needs_labels = True

        def __init__(self) -> None:
            super().__init__()
            self.inner = head

        def forward(self, both: Tensor) -> Tensor:
            return self.inner.statistics_loss(both[:, :5], both[:, 5].long())[:, None]

    both = torch.cat([rows, labels[:, None].double()], dim=1)
    agree(Loss(), both, clip=0.7)


def test_regression_solves_the_normal_equations() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(400, 4, dtype=torch.float64, generator=generator) + 1
    y = torch.nn.functional.one_hot((x[:, 0] > 1).long() + (x[:, 1] > 2).long(), 3).double()
    first = torch.cat([y.T @ x, y.sum(0)[:, None]], 1) / len(x)
    found = _regression(x.T @ x / len(x), first, ridge=0.1)
    assert found is not None
    second, shares, mean = x.T @ x / len(x), y.mean(0), x.mean(0)
    gap = found[:, :-1] @ second - (first[:, :-1] - shares[:, None] * mean)
    assert float(gap.abs().max()) < 1e-5
    outputs = x @ found[:, :-1].T + found[:, -1]
    assert torch.allclose(outputs.sum(1), torch.ones(400, dtype=torch.float64))
    assert torch.allclose(outputs.mean(0), shares)


def test_ridge_is_spectral_norm_of_noise() -> None:
    """With noise alone, the ridge's part √(2D)·σ of the regression is known."""
    generator = torch.Generator().manual_seed(3)
    features, deviation = 60, 0.02
    noise = deviation * torch.randn(features, features, dtype=torch.float64, generator=generator)
    first = torch.zeros(2, features + 1, dtype=torch.float64)
    first[:, -1] = 0.5
    first[0, 0], first[1, 0] = 0.3, -0.3
    # Along a direction with a large second moment, a weight is first / (moment + ridge).
    signal = torch.zeros(features, features, dtype=torch.float64)
    signal[0, 0] = 1e6
    plain = _regression(signal, first, ridge=0.0)
    noised = _regression(signal + noise, first, ridge=1e7)
    assert plain is not None
    assert noised is not None
    ratio = float(plain[0, 0] / noised[0, 0]) - 1
    assert ratio * 1e6 / 1e7 == pytest.approx((2 * features) ** 0.5 * deviation, rel=0.1)


def test_moments_of_noise_alone_stay_finite() -> None:
    generator = torch.Generator().manual_seed(4)
    for _ in range(20):
        head = _head()
        with torch.no_grad():
            for parameter in trainable(head):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            logits = head(10 * torch.randn(6, 5, generator=generator))
        assert bool(logits.isfinite().all())


@pytest.fixture(scope="module")
def exact() -> Result:
    """A run without noise."""
    return _study().run()


def test_run_releases_exact_moments(exact: Result) -> None:
    weights = exact.weights
    train = CELLS.load().train
    rows = FEATURES.preprocess(torch.from_numpy(train.images).float() / 255).double() / 70
    y = torch.nn.functional.one_hot(torch.from_numpy(train.labels), 8).double()
    a, b = 0.2**0.5, 0.4**0.5
    assert torch.allclose(
        weights["moments.weight"].double(), a * rows.T @ rows / len(rows), atol=1e-5
    )
    assert torch.allclose(weights["classes.weight"].double(), b * y.T @ rows / len(rows), atol=1e-5)
    assert torch.allclose(weights["classes.bias"].double(), b * y.mean(0), atol=1e-5)
    assert float(weights["head.weight"].abs().max()) == 0


def test_head_from_moments_beats_chance(exact: Result) -> None:
    assert exact.scores is not None
    assert exact.scores.main > 0.4  # chance is 1/8


SUMS = SecAgg(reconstruction_threshold=2)


@pytest.mark.parametrize(
    ("aggregator", "noise"), [(Plain(), "local"), (SUMS, "local"), (SUMS, "distributed")]
)
def test_one_release_has_the_whole_guarantee(aggregator: Any, noise: Any) -> None:
    result = _study(
        aggregator=aggregator,
        privatizer=Gaussian(epsilon=50.0, noise=noise),
        min_contributors=3,
        max_colluding=1,
        insecure_seeded_secrets=True,
    ).run()
    assert result.guarantee is not None
    assert result.guarantee.epsilon == pytest.approx(50, rel=1e-2)
    moments = result.weights["moments.weight"]
    assert float((moments - moments.T).abs().max()) > 0
    assert all(bool(tensor.isfinite().all()) for tensor in result.weights.values())


def test_gradient_rounds_start_from_the_moments(exact: Result) -> None:
    once = exact.weights
    more = _study(rounds=2, trainer=FedSGD(sampling_rate=1.0, statistics_rounds=1)).run().weights
    for name in ("moments.weight", "classes.weight", "classes.bias"):
        assert torch.equal(once[name], more[name])
    assert float(more["head.weight"].abs().max()) > 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": FEATURES}, "leaves none of 1 rounds for labels"),
        ({"model": FEATURES, "rounds": 2}, "the model has none"),
        ({"trainer": FedAvg()}, "has no rounds for it"),
        ({"trainer": FedSGD(statistics_rounds=2)}, "is more than the 1 rounds"),
        ({"model": Moments(features=Descriptor(private_whitening=True))}, "under a linear layer"),
    ],
)
def test_moments_without_support_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StudyError, match=sentence):
        _study(**changes).prepare()


def test_several_findings_are_refused() -> None:
    spec = DataSpec(channels=1, size=(28, 28), task=Multilabel(("a", "b")), examples=30)
    with pytest.raises(StudyError, match="takes the task 'multiclass'"):
        Moments(features=FEATURES).build(spec, 0)


def test_head_follows_new_moments() -> None:
    model = Moments(features=FEATURES)
    spec = DataSpec(channels=1, size=(28, 28), task=Multiclass(("a", "b")), examples=30)
    net = model.build(spec, 0)
    rows = model.preprocess(torch.rand(40, 1, 28, 28))
    with torch.no_grad():
        assert float(net(rows).abs().max()) == 0
    for seed in range(2):
        labels = torch.from_numpy(np.random.default_rng(seed).integers(0, 2, 40))
        net.zero_grad()
        net.statistics_loss(rows, labels).mean().backward()  # type: ignore[operator]
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                if parameter.grad is not None and not name.startswith("head"):
                    parameter.copy_(-parameter.grad)
            shares = net(rows).softmax(1)
            own = shares.gather(1, labels[:, None]).mean()
        assert float(own) > 0.6
    assert evolve(model, ridge=1.0) != model
