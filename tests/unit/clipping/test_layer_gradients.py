"""Layers of sequences, images and volumes, against one backward pass for each example."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from attrs import frozen
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st
from torch import nn

from cohortium.clipping import layer_call, linear_conv
from cohortium.clipping.registry import find_parameter_layers
from tests.support.per_example_gradients import agree

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
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
        agree(net, x, copies=copies)


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
