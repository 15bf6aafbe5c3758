from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from cohortium.clipping.batch_mixing import (
    find_batch_mixing_layers,
    require_no_batch_mixing,
    require_per_example_gradients,
)
from cohortium.clipping.clipped_sum import clipped_sum, mean_gradient
from cohortium.errors import PrivacyError

Losses = Callable[[NDArray[np.int64]], torch.Tensor]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.GroupNorm(3, 6), nn.ReLU(), nn.Flatten(),
        nn.LayerNorm(6 * 16), nn.Linear(6 * 16, 5), nn.ReLU(), nn.Linear(5, 3),
    )  # fmt: skip


class Tied(nn.Module):
    """One weight used twice, a frozen layer, a scalar and a parameter that is never used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Linear(32, 32)
        self.frozen = nn.Linear(32, 32)
        self.frozen.requires_grad_(requires_grad=False)
        self.last = nn.Linear(32, 3)
        self.unused = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        return self.last(self.frozen(self.first(self.first(x).relu())))  # type: ignore[no-any-return]


def losses_of(net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Losses:
    return lambda batch: functional.cross_entropy(
        net(images[torch.from_numpy(batch)]), labels[torch.from_numpy(batch)], reduction="none"
    )


def data(n: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n, 2, 4, 4, generator=generator), torch.arange(n) % 3


def one_by_one(
    net: nn.Module, losses: Losses, batch: NDArray[np.int64], clip: float
) -> torch.Tensor:
    """The definition: each example's gradient by itself, clipped, summed."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    for i in batch:
        grads = torch.autograd.grad(losses(np.array([i])).sum(), parameters, allow_unused=True)
        flat = torch.cat([
            (torch.zeros_like(p) if g is None else g).flatten()
            for g, p in zip(grads, parameters, strict=True)
        ]).double()  # fmt: skip
        total += flat * min(1.0, clip / float(flat.norm()))
    return total


def gradient(net: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]).double()


@pytest.mark.parametrize("clip", [1e-3, 0.5, 1e6])
@pytest.mark.parametrize("make", [network, Tied])
def test_clipped_sum_matches_one_by_one_gradients(
    make: Callable[[], nn.Module], clip: float
) -> None:
    net = make()
    losses = losses_of(net, *data())
    batch = np.array([0, 3, 4, 8])
    clipped_sum(net, losses, batch, clip=clip)
    expected = one_by_one(net, losses, batch, clip)
    assert float((gradient(net) - expected).norm()) <= 1e-5 * float(expected.norm())


def test_physical_batches_do_not_change_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    losses = losses_of(net, *data())
    clipped_sum(net, losses, np.arange(9), clip=0.1)
    whole = gradient(net)
    monkeypatch.setattr("cohortium.clipping.clipped_sum.GRADIENT_FLOATS", 1500)
    clipped_sum(net, losses, np.arange(9), clip=0.1)
    assert torch.allclose(whole, gradient(net), rtol=1e-5, atol=1e-8)


def test_copies_of_an_example_are_clipped_as_one() -> None:
    net = network()
    images, labels = data(6)

    def losses(batch: NDArray[np.int64]) -> torch.Tensor:
        index = torch.from_numpy(batch)
        copies = torch.stack([images[index], images[index].flip(3)], 1).flatten(0, 1)
        each = functional.cross_entropy(
            net(copies), labels[index].repeat_interleave(2), reduction="none"
        )
        return each.view(-1, 2).mean(1)

    clipped_sum(net, losses, np.arange(6), clip=0.3)
    expected = one_by_one(net, losses, np.arange(6), 0.3)
    assert float((gradient(net) - expected).norm()) <= 1e-5 * float(expected.norm())


def test_example_with_non_finite_gradient_counts_zero() -> None:
    net = network()
    images, labels = data()
    images[4] = float("nan")
    images[5] = float("inf")
    losses = losses_of(net, images, labels)
    clipped_sum(net, losses, np.array([0, 4, 5, 8]), clip=0.3)
    expected = one_by_one(net, losses, np.array([0, 8]), 0.3)
    assert float((gradient(net) - expected).norm()) <= 1e-5 * float(expected.norm())


def test_an_empty_batch_gives_zero() -> None:
    net = network()
    losses = losses_of(net, *data())
    for step in (mean_gradient, lambda *a: clipped_sum(*a, clip=1.0)):
        step(net, losses, np.array([], dtype=np.int64))
        assert all(p.grad is not None and not p.grad.any() for p in net.parameters())


def test_the_network_is_left_without_hooks() -> None:
    net = network()
    losses = losses_of(net, *data())
    clipped_sum(net, losses, np.arange(4), clip=1.0)
    assert not any(m._forward_hooks or m._backward_hooks for m in net.modules())
    mean_gradient(net, losses, np.arange(4))


@pytest.mark.parametrize(
    ("layer", "refused"),
    [
        (nn.BatchNorm2d(2), True),
        (nn.SyncBatchNorm(2), True),
        (nn.InstanceNorm2d(2, track_running_stats=True), True),
        (nn.InstanceNorm2d(2), False),
        (nn.GroupNorm(1, 2), False),
    ],
)
def test_batch_mixing_layers_are_found(layer: nn.Module, *, refused: bool) -> None:
    net = nn.Sequential(nn.Conv2d(2, 2, 1), layer)
    assert bool(find_batch_mixing_layers(net)) == refused
    if refused:
        with pytest.raises(PrivacyError, match=r"in 1 \(.*use GroupNorm"):
            require_no_batch_mixing(net)


class SequenceFirst(nn.Module):
    """Swaps batch and rows before a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.flatten(2).permute(1, 0, 2)).mean(0)  # type: ignore[no-any-return]


class Functional(nn.Module):
    """Batch statistics that no layer's type shows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = functional.batch_norm(x, None, None, training=True)
        return self.layer(normed.flatten(1))  # type: ignore[no-any-return]


class Crops(nn.Module):
    """Puts two halves of every image one after the other, not side by side."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = self.layer(torch.cat([x[:, :1].flatten(1), x[:, 1:].flatten(1)]))
        return both[: len(x)] + both[len(x) :]  # type: ignore[no-any-return]


@pytest.mark.parametrize("make", [Functional])
def test_batch_mixing_network_is_refused(
    make: Callable[[], nn.Module],
) -> None:
    inputs = torch.rand(2, 2, 4, 4, generator=torch.Generator().manual_seed(5))
    with pytest.raises(PrivacyError, match="see one another in the network Functional"):
        require_per_example_gradients(make(), inputs)


@pytest.mark.parametrize("make", [SequenceFirst, Crops])
def test_networks_that_move_the_batch_axis_are_admitted(make: Callable[[], nn.Module]) -> None:
    inputs = torch.rand(2, 2, 4, 4, generator=torch.Generator().manual_seed(5))
    require_per_example_gradients(make(), inputs)


@pytest.mark.parametrize("make", [network, lambda: nn.Sequential(nn.Dropout(), network())])
def test_separable_networks_are_left_unchanged(
    make: Callable[[], nn.Module],
) -> None:
    net = make().eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    require_per_example_gradients(net, data(4)[0])
    assert not any(layer.training for layer in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
