"""The clip holds whatever the network: leaving one example out moves the sum by at most C."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from attrs import frozen
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from cohortium.clipping.batch_mixing import require_no_batch_mixing, require_per_example_gradients
from cohortium.clipping.clipped_sum import clipped_sum
from cohortium.errors import CohortiumError, PrivacyError
from cohortium.parameters import trainable
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from tests.support.federations import tiny_federation

C = 1e-2
"""A bound at which every gradient of these networks is cut."""

ROUNDING = 1e-3
CHANNELS, SIDE, CLASSES = 2, 6, 3


def clipped(net: nn.Module, x: torch.Tensor, batch: NDArray[np.int64], clip: float) -> torch.Tensor:
    """The clipped sum over some rows of `x`, as one vector."""

    def losses(rows: NDArray[np.int64]) -> torch.Tensor:
        index = torch.from_numpy(rows)
        return functional.cross_entropy(net(x[index]), index % CLASSES, reduction="none")

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*examples are taken one by one")
        clipped_sum(net, losses, batch, clip=clip)
    found = [p.grad for p in trainable(net) if p.grad is not None]
    return torch.cat([g.flatten().double() for g in found])


def require_sensitivity(net: nn.Module, x: torch.Tensor) -> None:
    """Leave out each of a few examples, or replace it by a wild one."""
    everyone = np.arange(len(x))
    whole = clipped(net, x, everyone, C)
    assert float(whole.norm()) <= len(x) * C * (1 + ROUNDING)
    for i in {0, len(x) // 2, len(x) - 1}:
        without = clipped(net, x, np.delete(everyone, i), C)
        assert float((whole - without).norm()) <= C * (1 + ROUNDING) + 1e-6
        replaced = x.clone()
        replaced[i] = 100 * torch.randn_like(x[i])
        other = clipped(net, replaced, everyone, C)
        assert float((other - without).norm()) <= C * (1 + ROUNDING) + 1e-6


class Network(nn.Module):
    """Parts one after the other, then logits of whatever is left."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.head = nn.Linear(CHANNELS * SIDE * SIDE, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            x = part(x)
        return self.head(x.flatten(1))  # type: ignore[no-any-return]


class Part(nn.Module):
    """From (N, C, H, W) to the same shape; W -> W weights are small, so that stacks stay tame."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(SIDE, SIDE)
        self.gate = nn.Parameter(torch.zeros(()))


class TokensFirst(Part):
    """Rows of pixels on the first axis, before a plain linear layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(1, 2).transpose(0, 1)  # (tokens, N, W)
        return self.layer(rows).transpose(0, 1).view_as(x)  # type: ignore[no-any-return]


class Folded(Part):
    """Examples and rows in one axis, examples last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(1, 2).transpose(0, 1).reshape(-1, SIDE)
        return self.layer(rows).view(-1, len(x), SIDE).transpose(0, 1).reshape(x.shape)  # type: ignore[no-any-return]


class Packed(Part):
    """The bright rows of all images go through one linear layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, SIDE)
        bright = rows.mean(1) > 0
        out = rows.clone()
        out[bright] = self.layer(rows[bright])
        return out.view_as(x)


class Masked(Part):
    """The same by a mask."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bright = x.mean(3, keepdim=True) > 0
        return torch.where(bright, self.layer(x), x)


class Gated(Part):
    """The batch's mean behind a gate that begins at zero."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + self.gate * 50 * x.mean(0, keepdim=True)  # type: ignore[no-any-return]


class Neighbours(Part):
    """Each example sees the one before it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * (1 + self.gate * x.roll(1, 0).sum())  # type: ignore[no-any-return]


class LargeGroups(Part):
    """Batch statistics in groups of eight rows, and above four rows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) % 8 == 0:
            x = (x.view(8, -1, *x.shape[1:]) - x.view(8, -1, *x.shape[1:]).mean(0)).view_as(x)
        elif len(x) > 4:
            x = x / x.std()
        return self.layer(x)  # type: ignore[no-any-return]


class Sorted(Part):
    """Examples in the order of their brightness."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        order = x.flatten(1).mean(1).argsort()
        return self.layer(x[order])[order.argsort()]  # type: ignore[no-any-return]


class AcrossExamples(Part):
    """Attention over the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(1)
        weights = (flat @ flat.T).softmax(1)
        return self.layer((weights @ flat).view_as(x))  # type: ignore[no-any-return]


class Scan(Part):
    """One cell, called for each row of pixels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state, rows = torch.zeros_like(x[:, 0, 0]), []
        for row in x.flatten(1, 2).unbind(1):
            state = (self.layer(row) + state).tanh()
            rows.append(state)
        return torch.stack(rows, 1).view_as(x)


class Twice(Part):
    """One layer twice, and its weight once more by hand."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(self.layer(self.layer(x).relu()), self.layer.weight.T)


class Decided(Part):
    """A branch on the data."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) if float(x.detach().mean()) > 0 else x


class InPlace(Part):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).add_(self.gate).relu_()  # type: ignore[no-any-return]


class BatchNormByHand(Part):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.batch_norm(self.layer(x), None, None, training=True)


class Frames(Part):
    """Channels as images of their own, folded into the batch of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        frames = x.transpose(0, 1).reshape(-1, 1, SIDE, SIDE)  # examples within frames
        out = self.convolution(frames).view(CHANNELS, -1, SIDE, SIDE)
        return out.transpose(0, 1).reshape(x.shape)  # type: ignore[no-any-return]


class Recurrent(Part):
    """Batch second, as recurrent layers take it by default."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(SIDE, SIDE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x.flatten(1, 2).transpose(0, 1))[0].transpose(0, 1).reshape(x.shape)  # type: ignore[no-any-return]


class Attending(Part):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(SIDE, 2, 8, dropout=0.0, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(x.flatten(1, 2)).view_as(x)  # type: ignore[no-any-return]


class Checkpointed(Part):
    def __init__(self, *, use_reentrant: bool = False) -> None:
        super().__init__()
        self.use_reentrant = use_reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.clone().requires_grad_() if not x.requires_grad else x
        return checkpoint(self.layer, x, use_reentrant=self.use_reentrant)  # type: ignore[no-any-return]


class Looked(Part):
    """A table, with sparse gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, SIDE, sparse=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.table((x[..., 0] * 2).long().clamp(0, 3))
        return x + found + functional.embedding((x[..., 0] > 0).long(), self.table.weight)  # type: ignore[no-any-return]


class Standardised(Part):
    """A weight that is computed at every call, by hand."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.layer.weight - self.layer.weight.mean(1, keepdim=True)
        return functional.linear(x, weight, self.layer.bias)


PARTS: list[Callable[[], nn.Module]] = [
    TokensFirst, Folded, Packed, Masked, Gated, Neighbours, LargeGroups, Sorted, AcrossExamples,
    Scan, Twice, Decided, InPlace, BatchNormByHand, Frames, Recurrent, Attending, Checkpointed,
    lambda: Checkpointed(use_reentrant=True), Looked, Standardised,
    lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), lambda: nn.GroupNorm(1, CHANNELS),
    lambda: nn.LayerNorm(SIDE), lambda: nn.PReLU(CHANNELS), lambda: nn.ReLU(inplace=True),
    lambda: nn.InstanceNorm2d(CHANNELS, affine=True),
    lambda: nn.BatchNorm2d(CHANNELS).eval(),
    lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(CHANNELS, CHANNELS, 1)),
]  # fmt: skip


def trained(net: nn.Module, *, seed: int) -> nn.Module:
    """Weights after they have moved, gates open."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return net


def images(n: int, *, seed: int) -> torch.Tensor:
    return torch.randn(n, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("make", PARTS, ids=lambda make: getattr(make, "__name__", "part"))
@pytest.mark.parametrize("examples", [12, 8])
def test_one_example_moves_sum_within_clip(make: Callable[[], nn.Module], examples: int) -> None:
    """Twelve is the number of tokens, and eight divides no axis."""
    torch.manual_seed(1)
    require_sensitivity(trained(Network(make()), seed=2), images(examples, seed=3))


def can_learn(net: nn.Module, x: torch.Tensor) -> bool:
    """False for a stack that PyTorch itself cannot train: two ReLUs in place, one on the other."""
    with contextlib.suppress(RuntimeError):
        net(x).sum().backward()
        net.zero_grad()
        return True
    return False


@settings(max_examples=25, deadline=None)
@given(
    parts=st.lists(st.sampled_from(range(len(PARTS))), min_size=1, max_size=3),
    examples=st.integers(2, 13),
    seed=st.integers(0, 1000),
    tie=st.booleans(),
)
def test_stacks_of_parts_keep_the_clip(
    parts: list[int], examples: int, seed: int, *, tie: bool
) -> None:
    torch.manual_seed(seed)
    made = [PARTS[i]() for i in parts]
    if tie:  # one layer in several places
        made = [made[0], *made]
    net, x = trained(Network(*made), seed=seed), images(examples, seed=seed)
    assume(can_learn(net, x[:1]))
    require_sensitivity(net, x)


def test_first_axis_tokens_belong_to_their_example() -> None:
    """As many tokens as examples; read by its size, the axis would be the batch."""
    torch.manual_seed(0)
    net, x = Network(TokensFirst()), images(CHANNELS * SIDE, seed=1)
    each = [clipped(net, x, np.array([i]), C) for i in range(len(x))]
    together = clipped(net, x, np.arange(len(x)), C)
    assert float((together - sum(each[1:], each[0])).norm()) < C * ROUNDING


class Random(Part):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.dropout(self.layer(x), 0.5, training=True)


class StochasticDepth(Part):
    """A path that is dropped for each example (Huang et al. 2016)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = x.new_empty((len(x), 1, 1, 1)).bernoulli_(0.5)
        return x + kept * self.layer(x)  # type: ignore[no-any-return]


class Noisy(Part):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        noise = torch.rand(len(x), 1, 1, 1) + torch.randn_like(x)
        return self.layer(x + noise)  # type: ignore[no-any-return]


class LstmDropout(Part):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(SIDE, SIDE, num_layers=2, dropout=0.5, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x.flatten(1, 2))[0].reshape(x.shape)  # type: ignore[no-any-return]


def encoder() -> nn.Module:
    return nn.Sequential(nn.Flatten(1, 2), nn.TransformerEncoderLayer(SIDE, 2, batch_first=True))


@pytest.mark.parametrize("make", [Random, StochasticDepth, Noisy, LstmDropout, encoder, nn.Dropout])
def test_stochastic_networks_are_clipped(
    make: Callable[[], nn.Module],
) -> None:
    torch.manual_seed(0)
    net, x = Network(make()), images(6, seed=1)
    require_no_batch_mixing(net)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*examples are taken one by one")
        require_per_example_gradients(net, x)
    for _ in range(3):
        assert float(clipped(net, x, np.array([0]), C).norm()) <= C * (1 + ROUNDING)
    torch.manual_seed(5)
    rows = clipped(net, x[:1].expand(6, -1, -1, -1), np.zeros(6, np.int64), 1e6)
    alone = clipped(net, x[:1], np.array([0]), 1e6)
    assert float((rows - 6 * alone).norm()) > ROUNDING * float(rows.norm())  # each drew its own


def test_frozen_batch_normalisation_is_admitted() -> None:
    class Frozen(Network):
        def train(self, mode: bool = True) -> Frozen:
            super().train(mode)
            self.parts[0].eval()
            return self

    net = Frozen(nn.BatchNorm2d(CHANNELS))
    require_no_batch_mixing(net)
    require_per_example_gradients(net, images(4, seed=0))
    require_sensitivity(net.train(), images(8, seed=0))
    with pytest.raises(PrivacyError, match="use GroupNorm"):
        require_no_batch_mixing(Network(nn.BatchNorm2d(CHANNELS)))


OUTSIDE: list[torch.Tensor] = []


class Memory(Part):
    """Each example sees a running mean of those before it, once it is warm."""

    running: torch.Tensor
    mean: Any

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place, self.calls, self.mean = place, 0, None
        self.kept: Any = {"list": [], "deque": deque(maxlen=3), "dict": {}}.get(place)
        self.register_buffer("running", torch.zeros(SIDE))
        self.seen = np.zeros(SIDE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        now = x.detach().mean((0, 1, 2))
        before = self.remembered(now)
        return self.layer(x) + 20 * before  # type: ignore[no-any-return]

    def remembered(self, now: torch.Tensor) -> Any:
        before: Any = 0
        if self.place == "buffer":
            before = self.running.clone()
            self.running.lerp_(now, 0.5)
        elif self.place == "new buffer":
            before, self.running = self.running, (self.running + now) / 2
        elif self.place == "attribute":
            before, self.mean = (0 if self.mean is None else self.mean), now
        elif self.place == "count":
            self.calls += 1
            before = self.calls
        elif self.place == "array":
            before = torch.from_numpy(self.seen).float()
            self.seen[:] = now.numpy()
        elif self.place == "dict":
            before = self.kept.get("mean", 0)
            self.kept["mean"] = now
        else:
            before = sum(self.kept)
            self.kept.append(now)
        return before


@pytest.mark.parametrize("place", ["attribute", "count", "array", "dict", "list", "deque"])
def test_module_attribute_memory_is_discarded(place: str) -> None:
    torch.manual_seed(0)
    net, x = Network(Memory(place)), images(6, seed=1)
    for _ in range(3):
        require_sensitivity(net, x)


@pytest.mark.parametrize("place", ["buffer", "new buffer"])
def test_stateful_buffer_is_refused(place: str) -> None:
    net = Network(Memory(place))
    with pytest.raises(PrivacyError, match=r"memory of its input in 'parts\.0\.running'"):
        clipped(net, images(6, seed=1), np.arange(6), C)
    assert not bool(net.get_buffer("parts.0.running").isnan().any())


@contextlib.contextmanager
def outside() -> Iterator[None]:
    OUTSIDE.clear()
    yield
    OUTSIDE.clear()


class Global(Part):
    """A memory of which the network's modules know nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = sum(OUTSIDE)
        OUTSIDE.append(x.detach().mean((0, 1, 2)))
        return self.layer(x) + 20 * before  # type: ignore[no-any-return]


def test_memory_outside_network_is_refused() -> None:
    torch.manual_seed(0)
    net, x = Network(Global()), images(6, seed=1)

    def some_steps() -> None:
        for _ in range(4):
            clipped(net, x, np.arange(6), C)

    with outside(), pytest.raises(PrivacyError, match=r"Network cannot take|another output alone"):
        some_steps()


@frozen
class Remembers:
    """A model whose memory stands in its module, and opens after the trials of a run."""

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def build(self, spec: Any, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return Late(math.prod(spec.shape), len(spec.classes))


class Late(nn.Module):
    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        if self.head.weight.detach().norm() != self.first:
            OUTSIDE.append(x.detach().mean(0))
            x = x + 20 * sum(OUTSIDE[:-1])
        return self.head(x)  # type: ignore[no-any-return]

    @property
    def first(self) -> torch.Tensor:
        """The norm of the first weights that were seen."""
        return FIRST.setdefault("norm", self.head.weight.detach().norm().clone())


FIRST: dict[str, torch.Tensor] = {}


def test_failing_check_ends_run_before_release() -> None:
    study = tiny_federation(
        model=Remembers(), trainer=FedSGD(sampling_rate=1.0), privatizer=Gaussian(epsilon=50.0),
        rounds=4, sites=3,
    )  # fmt: skip
    FIRST.clear()
    with outside(), pytest.raises(CohortiumError, match=r"Late cannot take|another output alone"):
        study.run()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64])
def test_parameters_that_would_round_the_sum_are_refused(dtype: torch.dtype) -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(CHANNELS, CLASSES).to(dtype))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = x.mean((2, 3)).to(dtype) @ self.weight
            return (out.abs() if dtype.is_complex else out).float()

    with pytest.raises(PrivacyError, match=r"parameter 'weight' of Cast is of type .*float32"):
        clipped(Cast(), images(4, seed=0), np.arange(4), C)


def test_a_double_precision_network_is_clipped() -> None:
    net = Network(TokensFirst()).double()
    require_sensitivity(net, images(6, seed=0).double())


@frozen
class Shuffling:
    """A trainer's losses that put examples in another order than the batch's."""

    net: nn.Module
    x: torch.Tensor

    def __call__(self, batch: NDArray[np.int64]) -> torch.Tensor:
        index = torch.from_numpy(batch)
        out = self.net(self.x[index].repeat(2, 1, 1, 1))  # copies apart, not side by side
        return functional.cross_entropy(out, torch.cat([index, index]) % CLASSES,
                                        reduction="none").view(2, -1).mean(0)  # fmt: skip


def test_losses_reordering_examples_are_detected() -> None:
    torch.manual_seed(0)
    net, x = Network(TokensFirst()), images(6, seed=1)
    losses = Shuffling(net, x)
    with pytest.warns(UserWarning, match="depends on the rows of another example"):
        clipped_sum(net, losses, np.arange(6), clip=C)
    found = torch.cat([p.grad.flatten() for p in trainable(net) if p.grad is not None])
    expected = sum(clipped(net, x, np.array([i]), C) for i in range(6))
    assert float((found - expected).norm()) < C * ROUNDING


class Mixing(Part):
    """A plain layer, of networks to which something is done from outside."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


def centring() -> nn.Module:
    net = Network(Mixing())
    net.register_forward_pre_hook(lambda _, given: (given[0] - given[0].mean(0),))
    return net


def shifting() -> nn.Module:
    net = Network(Mixing())
    net.register_forward_hook(lambda _m, _i, out: out + 20 * out.detach().mean(0))
    return net


def flipping() -> nn.Module:
    net = Network(Mixing())
    signs = [1.0]

    def scaled(_: nn.Module, g: Any) -> Any:
        return (g[0] * signs[0],)

    net.register_forward_pre_hook(lambda _, x: signs.__setitem__(0, float(x[0].sum().sign())))
    net.register_full_backward_pre_hook(scaled)
    return net


@pytest.mark.parametrize("make", [centring, shifting, flipping])
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_hooks_of_the_network_itself_keep_the_clip(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(1)
    require_sensitivity(trained(make(), seed=2), images(12, seed=3))


class Normalised(torch.autograd.Function):
    """Nothing forward, a gradient of norm one backward; its rule for `vmap` sees the batch."""

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        return g / g.norm() * g.sum().sign()

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: torch.Tensor) -> Any:
        return Normalised.apply(x), in_dims[0]  # type: ignore[no-untyped-call]


class OwnRule(Part):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Normalised.apply(self.layer(x))  # type: ignore[no-any-return, no-untyped-call]


class Compressed(Part):
    """What is saved for the backward pass is scaled by the batch's sign."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pack = torch.autograd.graph.saved_tensors_hooks(lambda t: t * t.sum().sign(), lambda t: t)
        with pack:
            return self.layer(x).sin()  # type: ignore[no-any-return]


class HookedTensor(Part):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        if out.requires_grad:
            out.register_hook(lambda g: g * g.sum().sign())  # type: ignore[no-untyped-call]
        return out


class Seeded(Part):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return self.layer(x) * torch.randn(x.shape)  # type: ignore[no-any-return]


class SeededApart(Part):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return self.layer(x) * torch.randn(x.shape, generator=generator)  # type: ignore[no-any-return]


class Redilated(nn.Module):
    """One kernel at two dilations."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Conv2d(CHANNELS, CHANNELS, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for size in (1, 2):
            self.kernel.dilation = self.kernel.padding = (size, size)
            x = self.kernel(x)
        return x


class Given(Part):
    """A layer with weights that are computed from the input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.layer.weight * x.mean((0, 1, 2))
        found = torch.func.functional_call(self.layer, {"weight": weight}, (x,))
        return found + self.gate  # type: ignore[no-any-return]


class AlteredInput(Part):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.sub_(1.0))  # type: ignore[no-any-return]


def hooked_parameter() -> nn.Module:
    part = Mixing()
    part.layer.weight.register_hook(lambda g: g * 0)  # type: ignore[no-untyped-call]
    return part


@pytest.mark.parametrize(
    "make",
    [OwnRule, Compressed, HookedTensor, Seeded, SeededApart, Redilated, Given, AlteredInput,
     hooked_parameter],
)  # fmt: skip
def test_cross_row_code_is_clipped_per_example(
    make: Callable[[], nn.Module],
) -> None:
    torch.manual_seed(1)
    net, x = trained(Network(make()), seed=2), images(8, seed=3)
    each = []
    for i in range(len(x)):
        net.zero_grad()
        functional.cross_entropy(net(x[i : i + 1].clone()), torch.tensor([i % CLASSES])).backward()  # type: ignore[no-untyped-call]
        flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
                          for p in trainable(net)]).double()  # fmt: skip
        each.append(flat * min(1.0, C / float(flat.norm())))
    require_sensitivity(net, x)
    together = clipped(net, x, np.arange(8), C)
    assert float((together - sum(each[1:], each[0])).norm()) < C * ROUNDING


def without_gradient(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return net(x).softmax(1)  # type: ignore[no-any-return]


def attacked(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(net(x)[:, 0].sum(), x)
    return net((x + g.sign()).detach()).softmax(1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("part", [Mixing, BatchNormByHand])
@pytest.mark.parametrize("target", [without_gradient, attacked])
def test_other_calls_of_the_losses_are_isolated(
    part: type[nn.Module], target: Callable[[nn.Module, torch.Tensor], torch.Tensor]
) -> None:
    torch.manual_seed(1)
    net, x = trained(Network(part()), seed=2), images(8, seed=3)

    def losses(rows: NDArray[np.int64]) -> torch.Tensor:
        given = x[torch.from_numpy(rows)]
        return (net(given).log_softmax(1)[:, 0] - target(net, given)[:, 1]).square()  # type: ignore[no-any-return]

    def gradient(*rows: int) -> torch.Tensor:
        clipped_sum(net, losses, np.array(rows), clip=C)
        return torch.cat([p.grad.flatten().double() for p in trainable(net) if p.grad is not None])

    for parameter in trainable(net):
        parameter.grad = None
    losses(np.array([3])).sum().backward()  # type: ignore[no-untyped-call]
    flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
                      for p in trainable(net)]).double()  # fmt: skip
    expected = flat * min(1.0, C / float(flat.norm()))
    assert float((gradient(3) - expected).norm()) < C * ROUNDING
    apart = [gradient(i) for i in range(8)]
    assert float((gradient(*range(8)) - sum(apart[1:], apart[0])).norm()) < C * ROUNDING


class ByData(Part):
    """A memory that is written where torch counts no change."""

    running: torch.Tensor

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place
        self.register_buffer("running", torch.zeros(SIDE))
        self.frozen = nn.Parameter(torch.zeros(SIDE), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = self.frozen if self.place == "frozen" else self.running
        before, now = kept.detach().clone(), x.detach().mean((0, 1, 2))
        if self.place == "replaced":
            self.layer.bias = nn.Parameter(now)
        elif self.place == "array":
            kept.numpy()[:] = now.numpy()
        else:
            kept.data.lerp_(now, 0.5)
        return self.layer(x) + 20 * before  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("place", "said"),
    [("data", r"memory .* 'parts\.0\.running'"), ("array", r"memory .* 'parts\.0\.running'"),
     ("frozen", r"alters its parameter 'parts\.0\.frozen'"),
     ("replaced", r"alters its parameter 'parts\.0\.layer\.bias'")],
)  # fmt: skip
def test_untracked_tensor_changes_are_refused(place: str, said: str) -> None:
    with pytest.raises(PrivacyError, match=said):
        clipped(Network(ByData(place)), images(6, seed=1), np.arange(6), C)


class Slotted:
    __slots__ = ("mean",)

    def __init__(self) -> None:
        self.mean = 0.0

    def __call__(self, now: float) -> float:
        before, self.mean = self.mean, now
        return before


def enclosed() -> Callable[[float], float]:
    mean = 0.0

    def swap(now: float) -> float:
        nonlocal mean
        before, mean = mean, now
        return before

    return swap


class Hidden(Part):
    """A memory in a function, an object or a module that the network does not register."""

    def __init__(self, kept: Any) -> None:
        super().__init__()
        self.kept = [kept]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        now, (kept,) = float(x.detach().mean()), self.kept
        if isinstance(kept, nn.Module):
            before = getattr(kept, "mean", 0.0)
            kept.mean = now  # type: ignore[assignment]
        else:
            before = kept(now)
        return self.layer(x) + 20 * before  # type: ignore[no-any-return]


@pytest.mark.parametrize("kept", [nn.Identity, Slotted, enclosed])
def test_unregistered_memory_is_discarded(kept: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    require_sensitivity(Network(Hidden(kept())), images(6, seed=1))


class Outside(Part):
    mean = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before, Outside.mean = Outside.mean, float(x.detach().mean())
        return self.layer(x) + 20 * before  # type: ignore[no-any-return]


def test_unmapped_network_with_outside_memory_is_refused() -> None:
    with pytest.raises(PrivacyError, match="another output alone than in a batch"):
        clipped(Network(Outside()), images(6, seed=1), np.arange(6), C)


class Generating(Part):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * torch.randn(x.shape, generator=self.generator)  # type: ignore[no-any-return]


def test_a_generator_of_the_networks_own_is_refused() -> None:
    with pytest.raises(PrivacyError, match=r"generator of its own in 'parts\.0\.generator'"):
        clipped(Network(Generating()), images(6, seed=1), np.arange(6), C)


class Differences(nn.Module):
    """Of four tokens, differences alone count: constant tokens have no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(64, 64, bias=False), nn.Linear(64, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        t = self.layer(x)
        return self.head(t[:, 0] + 0.3 * t[:, 1] - t[:, 2] - 0.3 * t[:, 3])  # type: ignore[no-any-return]


@pytest.mark.parametrize("size", [1e6, 1e8])
def test_cancelling_sums_round_within_clip(size: float) -> None:
    torch.manual_seed(1)
    net, x = trained(Differences(), seed=2), torch.randn(6, 4, 64)
    x[3] = size * torch.randn(64)
    alone = clipped(net, x, np.array([3]), C)
    assert float(alone.norm()) <= C * (1 + 10 * ROUNDING)


def test_a_network_without_shapes_is_refused() -> None:
    with pytest.raises(PrivacyError, match=r"parameter '1\.weight' .* has no shape yet"):
        clipped(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), images(4, seed=0), np.arange(4), C)
