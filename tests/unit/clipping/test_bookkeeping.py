"""Clipped sums of every kind of layer, against their definition and against Opacus."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from cohortium.clipping import layer_call, linear_conv
from cohortium.clipping.bookkeeping import GradientRecorder
from cohortium.clipping.clipped_sum import clipped_sum
from cohortium.errors import PrivacyError
from cohortium.parameters import trainable
from cohortium.plugin import DataSpec, Multiclass
from cohortium_cnn import CNN
from cohortium_descriptor import Descriptor
from cohortium_dpresnet import DPResNet
from cohortium_phantom import Phantom
from cohortium_pretrained import Pretrained
from cohortium_resnet9 import ResNet9
from cohortium_resnet18 import ResNet18
from cohortium_scatternet import ScatterNet
from cohortium_vgg16 import VGG16
from tests.support.per_example_gradients import EXACT, Losses, agree, gradient, losses_of


def by_opacus(net: nn.Module, losses: Losses, examples: int, clip: float) -> torch.Tensor:
    from opacus import GradSampleModule

    wrapped = GradSampleModule(net, loss_reduction="sum", strict=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        losses(np.arange(examples)).sum().backward()  # type: ignore[no-untyped-call]
    samples = [
        torch.zeros(examples, p.numel()) if sample is None else sample.flatten(1)
        for p in trainable(net)
        for sample in [cast("Any", p).grad_sample]
    ]
    flat = torch.cat(samples, 1).double()
    wrapped.to_standard_module()
    norms = flat.norm(dim=1, keepdim=True)
    total: torch.Tensor = (flat * (clip / norms).clamp(max=1.0)).sum(0)
    return total


@pytest.fixture(params=["as it is", "held", "ghost", "thrown away"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way to a norm, whatever the sizes."""
    if request.param == "held":
        monkeypatch.setattr(layer_call, "HOLD", 1 << 40)
    elif request.param != "as it is":
        monkeypatch.setattr(layer_call, "HOLD", 0)
        workload = 0.0 if request.param == "ghost" else float("inf")
        original = linear_conv.ConvolutionCall._gram_work

        def forced(use: linear_conv.ConvolutionCall, positions: int) -> float:
            return max(workload, 0.0 if original(use, positions) < float("inf") else float("inf"))

        monkeypatch.setattr(linear_conv.ConvolutionCall, "_gram_work", forced)
        monkeypatch.setattr(layer_call, "SLICE", 700)
        monkeypatch.setattr("cohortium.clipping.conv.GROUPED", 100)


CONVOLUTIONS = st.fixed_dictionaries({
    "kernel_size": st.tuples(st.integers(1, 3), st.integers(1, 4)),
    "stride": st.tuples(st.integers(1, 3), st.integers(1, 2)),
    "padding": st.tuples(st.integers(0, 2), st.integers(0, 1)),
    "dilation": st.tuples(st.integers(1, 2), st.integers(1, 2)),
    "groups": st.sampled_from([1, 2]),
    "bias": st.booleans(),
    "padding_mode": st.sampled_from(["zeros", "circular"]),
})  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(options=CONVOLUTIONS, copies=st.sampled_from([1, 3]))
@pytest.mark.parametrize("forced", ["held", "grouped", "ghost", "thrown away"])
def test_convolution_clipped_sum_matches_reference(
    forced: str, options: Mapping[str, Any], copies: int
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 6, **options), nn.GroupNorm(2, 6))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_call, "HOLD", 1 << 40 if forced in {"held", "grouped"} else 0)
        if forced == "grouped":
            patch.setattr("cohortium.clipping.conv.UNFOLDED", -1)
        if forced == "thrown away":
            patch.setattr(linear_conv.ConvolutionCall, "_gram_work", lambda *_: float("inf"))
        agree(net, torch.randn(3 * copies, 4, 7, 8), copies=copies)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), max_size=2), copies=st.sampled_from([1, 2]),
    bias=st.booleans(), hold=st.sampled_from([0, 2, 1000]),
)  # fmt: skip
def test_linear_layer_clipped_sum_matches_reference(
    shape: list[int], copies: int, hold: int, *, bias: bool
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7, bias=bias), nn.LayerNorm(7), nn.Linear(7, 2, bias=bias))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_call, "HOLD", hold)
        agree(net, torch.randn(3 * copies, *shape, 5), copies=copies)


class Chain(nn.Module):
    """One layer called twice, and a second layer with its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.second.weight = self.first.weight
        self.head.bias.requires_grad = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(self.first(self.first(x.flatten(1)[:, :6]).relu()))
        return self.head(y)  # type: ignore[no-any-return]


class Scaled(nn.Module):
    """A scalar and a vector of its own, used directly around layers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.shift = nn.Parameter(torch.randn(6))
        self.inner, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(x.flatten(1)[:, :6]) * self.scale + self.shift)  # type: ignore[no-any-return]


class Standardised(nn.Conv2d):
    """Weight standardisation (Qiao et al. 2019)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / (variance + 1e-5).sqrt()
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding)


class Centred(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight - weight.mean()


def parametrised(layer: nn.Module) -> nn.Module:
    """With a weight that is computed in two steps."""
    for step in (Centred(), Unit()):
        nn.utils.parametrize.register_parametrization(layer, "weight", step)
    return layer


class Unit(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        norms: torch.Tensor = torch.linalg.vector_norm(weight.flatten(1), dim=1)
        return weight / norms.view([-1] + [1] * (weight.ndim - 1))


def frozen(layer: nn.Module) -> nn.Module:
    return layer.requires_grad_(requires_grad=False)


ODD: dict[str, Callable[[], nn.Module]] = {
    "tied": Chain,
    "own parameters": Scaled,
    "weight standardised": lambda: Standardised(2, 4, 3, padding=1),
    "parametrised": lambda: nn.Sequential(
        parametrised(nn.Conv2d(2, 4, 3)), parametrised(nn.ConvTranspose2d(4, 4, 2, 2, 1, 1)),
        nn.Flatten(), parametrised(nn.Linear(196, 5))),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 4, 3)).eval(),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 4, 3)),
    "activation": lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding="same"), nn.PReLU(4)),
    "in place": lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True),
                                      nn.Conv2d(4, 2, 1)),
    "transposed": lambda: nn.ConvTranspose2d(2, 3, 2),
    "instance": lambda: nn.Sequential(nn.InstanceNorm2d(2, affine=True), nn.Conv2d(2, 3, 2)),
    "sequence": lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(2, 3, 3, 2, 1), nn.GroupNorm(1, 3)),
    "volume": lambda: nn.Sequential(nn.Unflatten(1, (1, 2)), nn.Conv3d(1, 3, (2, 3, 2))),
    "frozen": lambda: nn.Sequential(frozen(nn.Conv2d(2, 4, 3)), nn.ReLU(), nn.Conv2d(4, 2, 1)),
}  # fmt: skip


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("make", ODD.values(), ids=ODD.keys())
def test_unusual_network_clipped_sum_matches_reference(
    make: Callable[[], nn.Module], copies: int
) -> None:
    torch.manual_seed(2)
    agree(make(), torch.randn(3 * copies, 2, 6, 6), copies=copies)


def test_random_weight_is_not_recomputed() -> None:
    layer = nn.Conv2d(2, 4, 3)
    nn.utils.parametrize.register_parametrization(layer, "weight", nn.Dropout(0.5))
    net = nn.Sequential(layer, nn.Flatten())
    with pytest.warns(UserWarning, match="one by one"):
        clipped_sum(net, losses_of(net, torch.randn(3, 2, 6, 6)), np.arange(3), clip=1.0)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("padding", [None, 0])
def test_embedding_clipped_sum_matches_reference(padding: int | None) -> None:
    torch.manual_seed(2)
    net = nn.Sequential(nn.Embedding(9, 4, padding_idx=padding), nn.Linear(4, 2))
    agree(net, torch.randint(0, 9, (6, 8)), copies=2)


class Elsewhere(nn.Module):
    """A weight that another module's code uses."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x.flatten(1)[:, :6]).relu()
        return functional.linear(x, self.first.weight.T)


class Altered(nn.Module):
    """An input that is altered after its layer has seen it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)[:, :6] * 1.0
        y: torch.Tensor = self.first(x)
        return y + x.add_(1.0)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1, 2)
        return self.attention(x, x, x)[0]  # type: ignore[no-any-return]


class Sequence(nn.Module):
    """The batch as the second dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x.flatten(1, 2).transpose(0, 1))[0].transpose(0, 1)  # type: ignore[no-any-return]


class Recomputed(nn.Module):
    """A layer that is called again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (x.flatten(1)[:, :6] * 1.0).requires_grad_()
        return self.last(checkpoint(self.first, x, use_reentrant=True))  # type: ignore[no-any-return]


class Counted(nn.Module):
    """Gradients scaled by counts over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3, scale_grad_by_freq=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table((x.flatten(1) > 0).long())  # type: ignore[no-any-return]


def test_an_embedding_that_rescales_itself_is_refused() -> None:
    net = nn.Embedding(5, 3, max_norm=1.0)
    with pytest.raises(PrivacyError, match="leave out its option 'max_norm'"):
        clipped_sum(net, losses_of(net, torch.randint(0, 5, (3, 2))), np.arange(3), clip=1.0)


@pytest.mark.parametrize("make", [Elsewhere, Attention, Counted, Sequence])
def test_uncovered_layer_calls_use_copies(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(2)
    agree(make(), torch.randn(3, 2, 3, 6))


def test_unmappable_passes_run_per_example() -> None:
    torch.manual_seed(2)
    with pytest.warns(UserWarning, match="examples are taken one by one, which is slow"):
        agree(Recomputed(), torch.randn(3, 2, 3, 6))


def test_input_altered_in_place_is_refused() -> None:
    """Torch itself notices, but only where it takes the gradient."""
    net = Altered()
    losses = losses_of(net, torch.randn(3, 2, 3, 6))
    with pytest.raises(PrivacyError, match="modified by an inplace operation"):
        clipped_sum(net, losses, np.arange(3), clip=1.0)


SPEC = DataSpec(channels=3, size=(28, 28), task=Multiclass(tuple("abcdefgh")), examples=6)


CELLS = Phantom(examples=16, validation=0, test=8)

MODELS = [
    DPResNet(width=8),
    DPResNet(width=4, standardise=True),
    CNN(width=8),
    Descriptor(bins=4, edge_bins=2),
    Descriptor(bins=4, edge_bins=2, private_whitening=True),
    Pretrained(images=CELLS, width=2, epochs=1),
    Pretrained(
        images=CELLS, network=DPResNet(width=4), epochs=1, whiten=1.0, private_whitening=True
    ),
    Pretrained(images=CELLS, network=DPResNet(width=4), epochs=1, trainable="norms"),
    Pretrained(images=CELLS, network=DPResNet(width=4), epochs=1, trainable="everything"),
    ScatterNet(),
    ResNet18(width=4),
    ResNet9(width=4, norm="group"),
    VGG16(width=2),
]


class Computed(nn.Conv2d):
    """A parametrised convolution as Opacus can take it."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(
            layer.in_channels, layer.out_channels, cast("Any", layer.kernel_size),
            cast("Any", layer.stride), cast("Any", layer.padding), bias=False,
        )  # fmt: skip
        weight = cast("Any", layer).parametrizations.weight
        self.weight = weight.original
        self.step = weight[0].forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.step(self.weight), None)  # type: ignore[no-any-return]


def for_opacus(net: nn.Module) -> nn.Module:
    """The network with the same parameters, without parametrisations."""
    copied = copy.deepcopy(net)
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d) and nn.utils.parametrize.is_parametrized(layer):
            copied.set_submodule(name, Computed(cast("nn.Conv2d", copied.get_submodule(name))))
    return copied


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_clipped_sum_matches_opacus(model: Any) -> None:
    net = model.build(SPEC, 0)
    theirs = for_opacus(net)
    x = model.preprocess(torch.rand(6, 3, 28, 28, generator=torch.Generator().manual_seed(1)))
    labels = torch.arange(6)

    def losses(net: nn.Module, batch: NDArray[np.int64]) -> torch.Tensor:
        index = torch.from_numpy(batch)
        return functional.cross_entropy(net(x[index]), labels[index], reduction="none")

    for clip in (1e-2, 1e6):
        expected = by_opacus(theirs, partial(losses, theirs), 6, clip)
        clipped_sum(net, partial(losses, net), np.arange(6), clip=clip)
        assert float((gradient(net) - expected).norm()) <= EXACT * float(expected.norm())


# What is whitened looks at its moments' values before it runs, and there are none.
WITHOUT_MOMENTS = [model for model in MODELS if not getattr(model, "private_whitening", False)]


@pytest.mark.parametrize("model", WITHOUT_MOMENTS, ids=str)
def test_gradient_sums_stay_on_parameter_device(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device without numbers, whose tensors torch lets meet few of the processor's."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    net = model.build(SPEC, 0).to("meta")
    x = model.preprocess(torch.rand(6, 3, 28, 28)).to("meta")
    labels = torch.zeros(6, dtype=torch.int64, device="meta")
    with GradientRecorder(net) as book:
        shares, _ = book.record(
            lambda _: functional.cross_entropy(net(x), labels, reduction="none"), np.arange(6)
        )
        factors = sum((share.squared_norms for share in shares), torch.zeros(6, device="meta"))
        totals = {
            parameter: total
            for share in shares
            for bad in (None, ~factors.isfinite())
            for parameter, total in zip(
                share.parameters, share.weighted_sums(factors, bad), strict=True
            )
        }
    assert totals
    assert all(p.device == t.device and p.shape == t.shape for p, t in totals.items())


@pytest.mark.parametrize("hold", [0, 1 << 40])
def test_statistics_loss_clipped_sum_matches_opacus(
    hold: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_call, "HOLD", hold)
    model = Descriptor(bins=4, edge_bins=2, private_whitening=True)
    net = model.build(SPEC, 0)
    x = model.preprocess(torch.rand(6, 3, 28, 28, generator=torch.Generator().manual_seed(1)))

    def losses(batch: NDArray[np.int64]) -> torch.Tensor:
        found: torch.Tensor = cast("Any", net).statistics_loss(x[torch.from_numpy(batch)])
        return found

    for clip in (1e-2, 1e6):
        expected = by_opacus(net, losses, 6, clip)
        clipped_sum(net, losses, np.arange(6), clip=clip)
        assert float(expected.norm()) > 0
        assert float((gradient(net) - expected).norm()) <= EXACT * float(expected.norm())


@pytest.mark.parametrize("make", ODD.values(), ids=ODD.keys())
def test_clipped_sum_keeps_evaluation_mode(make: Callable[[], nn.Module]) -> None:
    net = make().eval()
    clipped_sum(net, losses_of(net, torch.randn(3, 2, 6, 6)), np.arange(3), clip=1.0)
    assert not any(m.training for m in net.modules())


@pytest.mark.usefixtures("way")
def test_cancelling_ghost_norm_stays_within_clip() -> None:
    """Nearly constant inputs under a normalisation: gradients add up to almost nothing."""
    torch.manual_seed(2)
    net = nn.Sequential(nn.Conv2d(2, 8, 3, bias=False), nn.Flatten(), nn.LayerNorm(8 * 144))
    x = 1 + 1e-3 * torch.randn(4, 2, 14, 14)
    losses = losses_of(net, x)
    for i in range(4):
        clipped_sum(net, losses, np.array([i]), clip=1e-3)
        assert float(gradient(net).norm()) <= 1e-3 * (1 + EXACT)


def test_under_bfloat16_a_contribution_stays_within_the_clip() -> None:
    net = DPResNet(width=8).build(SPEC, 0)
    losses = losses_of(net, torch.randn(2, 3, 28, 28))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for i in range(2):
            clipped_sum(net, losses, np.array([i]), clip=1e-3)
            assert float(gradient(net).norm()) <= 1e-3 * (1 + EXACT)


def test_large_layers_keep_no_gradient_for_each_example() -> None:
    net = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.Flatten(), nn.Linear(64 * 16, 200))
    losses = losses_of(net, torch.randn(8, 64, 4, 4))
    with GradientRecorder(net) as book:
        _, floats = book.record(losses, np.arange(8))
    assert floats < 8 * 0.03 * sum(p.numel() for p in trainable(net))


def test_network_error_leaves_network_unchanged() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(5, 2))
    with pytest.raises(PrivacyError, match=r"Sequential cannot take a private step .*shapes"):
        clipped_sum(net, losses_of(net, torch.randn(3, 6)), np.arange(3), clip=1.0)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert len(list(net.parameters())) == 4
