"""Layers of sequences, images and volumes, against one backward pass for each example."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from attrs import frozen
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st
from torch import nn

from cohortium.clipping import layer_call, linear_conv
from cohortium.clipping.batch_mixing import require_no_batch_mixing
from cohortium.clipping.clipped_sum import clipped_sum
from cohortium.clipping.recurrent import mappable
from cohortium.clipping.registry import find_parameter_layers
from cohortium.errors import PrivacyError
from tests.support.per_example_gradients import agree, gradient, losses_of

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
INSTANCE_NORMS: dict[int, Any] = {
    1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d,
}  # fmt: skip
WAYS = ("stored", "grouped", "ghost", "discarded")
"""Ways to the gradients and norms of a convolution."""


@frozen
class Case:
    """A convolution and the size of its input."""

    options: dict[str, Any]
    size: tuple[int, ...]


@st.composite
def convolutions(draw: st.DrawFn, *, is_transposed: bool) -> Case:
    """Any kernel, stride, padding and dilation along each of one, two or three axes."""
    rank = draw(st.integers(1, 3))

    def sides(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(least, most)) for _ in range(rank))

    options: dict[str, Any] = {
        "kernel_size": sides(1, 3), "stride": sides(1, 3), "dilation": sides(1, 2),
        "padding": sides(0, 2), "groups": draw(st.sampled_from([1, 2])),
        "bias": draw(st.booleans()),
    }  # fmt: skip
    if is_transposed:
        more = zip(options["stride"], options["dilation"], strict=True)
        options["output_padding"] = tuple(draw(st.integers(0, max(pair) - 1)) for pair in more)
        return Case(options, sides(1, 4))
    options["padding_mode"] = draw(st.sampled_from(["zeros", "circular", "replicate"]))
    return Case(options, sides(2, 6))


def forced(way: str) -> Iterator[None]:
    """Take one way, whatever the sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_call, "HOLD", 1 << 40 if way in {"stored", "grouped"} else 0)
        if way == "grouped":
            patch.setattr("cohortium.clipping.conv.UNFOLDED", -1)
        if way == "discarded":
            patch.setattr(linear_conv.ConvolutionCall, "_gram_work", lambda *_: float("inf"))
        yield


def require_mapped(net: nn.Module, x: torch.Tensor, *, copies: int = 1) -> None:
    """Compare with the definition, and refuse to take examples one by one."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agree(net.double(), x, copies=copies)


def require_definition(layer: nn.Module, case: Case, *, copies: int, way: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(3 * copies, 4, *case.size, dtype=torch.float64)
    net = nn.Sequential(layer, nn.Tanh()).double()
    try:
        output = net(x)
    except RuntimeError:  # the kernel is larger than the padded input
        reject()
    assume(output.numel())
    assert all(found.kind is not None for found in find_parameter_layers(net))
    for _ in forced(way):
        require_mapped(net, x, copies=copies)


@settings(max_examples=30, deadline=None)
@given(case=convolutions(is_transposed=False), copies=st.sampled_from([1, 2]))
@pytest.mark.parametrize("way", WAYS)
def test_convolution_of_any_rank_matches_definition(way: str, case: Case, copies: int) -> None:
    layer = CONVOLUTIONS[len(case.size)](4, 6, **case.options)
    require_definition(layer, case, copies=copies, way=way)


@settings(max_examples=30, deadline=None)
@given(case=convolutions(is_transposed=True), copies=st.sampled_from([1, 2]))
@pytest.mark.parametrize("way", WAYS)
def test_transposed_convolution_matches_definition(way: str, case: Case, copies: int) -> None:
    layer = TRANSPOSED[len(case.size)](4, 6, **case.options)
    require_definition(layer, case, copies=copies, way=way)


NORMS: dict[str, Callable[[int, tuple[int, ...]], nn.Module]] = {
    "group": lambda channels, _: nn.GroupNorm(channels // 2, channels),
    "instance": lambda channels, size: INSTANCE_NORMS[len(size)](channels, affine=True),
    "layer": lambda channels, size: nn.LayerNorm([channels, *size]),
    "layer, last axis": lambda _, size: nn.LayerNorm(size[-1:]),
    "root mean square": lambda _, size: nn.RMSNorm(size[-1:]),
}


@settings(max_examples=20, deadline=None)
@given(
    channels=st.sampled_from([2, 4, 6]), size=st.lists(st.integers(2, 4), min_size=1, max_size=3),
    copies=st.sampled_from([1, 2]),
)  # fmt: skip
@pytest.mark.parametrize("make", NORMS.values(), ids=NORMS.keys())
def test_normalization_matches_definition(
    make: Callable[[int, tuple[int, ...]], nn.Module], channels: int, size: list[int], copies: int
) -> None:
    torch.manual_seed(0)
    x = torch.randn(3 * copies, channels, *size, dtype=torch.float64)
    require_mapped(nn.Sequential(make(channels, tuple(size)), nn.Tanh()), x, copies=copies)


@settings(max_examples=20, deadline=None)
@given(
    table=st.tuples(st.integers(1, 9), st.integers(1, 4)), padding=st.sampled_from([None, 0, -1]),
    shape=st.lists(st.integers(1, 4), max_size=2), copies=st.sampled_from([1, 2]),
)  # fmt: skip
@pytest.mark.parametrize("hold", [0, 1 << 40])
def test_embedding_of_any_shape_matches_definition(
    hold: int, table: tuple[int, int], padding: int | None, shape: list[int], copies: int
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(*table, padding_idx=padding), nn.Linear(table[1], 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_call, "HOLD", hold)
        require_mapped(net, torch.randint(0, table[0], (3 * copies, *shape)), copies=copies)


class Read(nn.Module):
    """A layer that reads sequences, (N, T, D), with the first of its results."""

    def __init__(self, layer: nn.Module, *, is_batch_first: bool) -> None:
        super().__init__()
        self.layer, self.is_batch_first = layer, is_batch_first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if self.is_batch_first else x.transpose(0, 1)
        attends = isinstance(self.layer, nn.MultiheadAttention)
        y: torch.Tensor = (self.layer(x, x, x) if attends else self.layer(x))[0]
        return y if self.is_batch_first else y.transpose(0, 1)


@settings(max_examples=20, deadline=None)
@given(
    steps=st.integers(1, 4), heads=st.sampled_from([1, 2]), width=st.sampled_from([2, 4]),
    options=st.fixed_dictionaries({
        "bias": st.booleans(), "add_bias_kv": st.booleans(), "add_zero_attn": st.booleans(),
        "batch_first": st.booleans(),
    }),
)  # fmt: skip
def test_attention_matches_definition(
    steps: int, heads: int, width: int, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(width, heads, **options)
    net = Read(layer, is_batch_first=options["batch_first"])
    require_mapped(net, torch.randn(3, steps, width, dtype=torch.float64))


RECURRENT: dict[str, Callable[..., nn.Module]] = {
    "lstm": nn.LSTM,
    "projected lstm": lambda *args, **options: nn.LSTM(*args, proj_size=2, **options),
    "gru": nn.GRU,
    "tanh": nn.RNN,
    "relu": lambda *args, **options: nn.RNN(*args, nonlinearity="relu", **options),
}


@settings(max_examples=12, deadline=None)
@given(
    steps=st.integers(1, 4), width=st.integers(1, 3),
    options=st.fixed_dictionaries({
        "num_layers": st.integers(1, 2), "bias": st.booleans(), "bidirectional": st.booleans(),
        "batch_first": st.booleans(),
    }),
)  # fmt: skip
@pytest.mark.parametrize("make", RECURRENT.values(), ids=RECURRENT.keys())
def test_recurrent_layer_matches_definition(
    make: Callable[..., nn.Module], steps: int, width: int, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    net = Read(make(width, 3, **options), is_batch_first=options["batch_first"])
    require_mapped(net, torch.randn(3, steps, width, dtype=torch.float64))


class Stepwise(nn.Module):
    """A cell that the network calls itself for each step, with its last state as the result."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state: Any = None
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        return torch.cat(state, 1) if isinstance(state, tuple) else state


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_recurrent_cell_matches_definition(cell: Callable[..., nn.Module], has_bias: bool) -> None:
    torch.manual_seed(0)
    net = Stepwise(cell(2, 3, bias=has_bias))
    require_mapped(net, torch.randn(3, 4, 2, dtype=torch.float64))


def test_substitute_gives_recurrent_layers_states() -> None:
    torch.manual_seed(0)
    for layer in (nn.LSTM(2, 3, 2, bidirectional=True), nn.GRU(2, 3, 2, bidirectional=True)):
        x = torch.randn(4, 2, 2)
        states = tuple(torch.randn(4, 2, 3) for _ in range(2 if isinstance(layer, nn.LSTM) else 1))
        given = (x, states if len(states) > 1 else states[0], layer._flat_weights)
        operation: Any = torch.lstm if isinstance(layer, nn.LSTM) else torch.gru
        options = (True, 2, 0.0, True, True, False)
        substitute: Any = mappable(operation, (*given, *options))
        for found, wanted in zip(
            substitute(*given, *options), operation(*given, *options), strict=True
        ):
            assert torch.allclose(found, wanted, atol=1e-6)


def test_recurrent_dropout_differs_between_examples() -> None:
    """Three copies of one sequence, and a clip that makes their contributions unit vectors."""
    torch.manual_seed(0)
    net = Read(nn.GRU(2, 4, 2, dropout=0.5, batch_first=True), is_batch_first=True)
    losses = losses_of(net, torch.randn(1, 3, 2).repeat(3, 1, 1))
    clipped_sum(net, losses, np.arange(3), clip=1e-3)
    assert float(gradient(net).norm()) < 2.999e-3


class Sized(nn.Module):
    """A transposed convolution with an argument in addition to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ConvTranspose2d(2, 3, 3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x, output_size=[8, 10])  # type: ignore[no-any-return]


class Twice(nn.Module):
    """A transposed convolution that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ConvTranspose2d(2, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.layer(x).tanh())  # type: ignore[no-any-return]


class Shared(nn.Module):
    """A recurrent layer that is called twice, from a learned state."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(5, 5, batch_first=True)
        self.start = nn.Parameter(torch.randn(1, 1, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        start = self.start.expand(1, len(x), 5).contiguous()
        return self.layer(self.layer(x.flatten(1, 2), start)[0])[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("make", [Sized, Twice, Shared])
def test_unusual_call_matches_definition(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    require_mapped(make(), torch.randn(3, 2, 4, 5, dtype=torch.float64))


class Packed(nn.Module):
    """A batch of sequences of several lengths, in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(2, 3, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        lengths = (x[:, :, 0] > 0).sum(1).clamp(min=1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths, batch_first=True, enforce_sorted=False
        )
        last: torch.Tensor = self.layer(packed)[1][0][-1]
        return last


def test_packed_sequences_run_per_example() -> None:
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="examples are taken one by one, which is slow"):
        agree(Packed().double(), torch.randn(3, 4, 2, dtype=torch.float64))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "batch norm": (lambda: nn.BatchNorm3d(4), "mixes the examples of a batch in .*BatchNorm3d"),
    "tracked instance norm": (
        lambda: nn.InstanceNorm3d(4, track_running_stats=True),
        "mixes the examples of a batch in .*InstanceNorm3d",
    ),
}


@pytest.mark.parametrize(("make", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_layer_that_mixes_examples_is_refused(make: Callable[[], nn.Module], sentence: str) -> None:
    with pytest.raises(PrivacyError, match=sentence):
        require_no_batch_mixing(nn.Sequential(nn.Conv3d(1, 4, 3), make()))
