"""A network as public operations, the parties' file, and the refusals of the commands."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from typer.testing import CliRunner

from cohortium.cli import app
from cohortium.data.examples import DataSpec
from cohortium.errors import CohortiumError, NetworkError, RequestError
from cohortium.inference.classifier import Classifier
from cohortium.inference.shared import party, sessions
from cohortium.inference.shared.network import SharedNetwork, read_network
from cohortium.inference.shared.parties import Parties, TlsFiles
from cohortium.inference.shared.process import PartyProcess
from cohortium.inference.shared.value_sizes import Limits, largest_part, require_in_ring
from cohortium.plugin import Model, Multiclass
from cohortium_cnn import CNN
from cohortium_dpresnet import DPResNet
from cohortium_resnet9 import ResNet9
from cohortium_resnet18 import ResNet18
from cohortium_vgg16 import VGG16
from tests.support.federations import tiny_federation

SPEC = DataSpec(
    channels=3, size=(17, 14), task=Multiclass(("a", "b", "c")), pixel_type="uint8",
    intensity_range=(0, 255), examples=10, patients=None,
)  # fmt: skip

MODELS: list[Any] = [
    CNN(width=2),
    DPResNet(width=2),
    DPResNet(width=2, standardise=True),
    ResNet9(width=2),
    pytest.param(ResNet18(width=2), marks=pytest.mark.slow),
    pytest.param(VGG16(width=2), marks=pytest.mark.slow),
]


def trained(model: Model) -> nn.Module:
    """A network whose statistics and affine weights are not those of the beginning."""
    net = model.build(SPEC, 0)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in net.state_dict().items():
        if tensor.ndim == 1 and tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(noise + 0.5 if "var" in name or "weight" in name else noise - 0.5)
    return net.eval()


def computed(network: SharedNetwork, image: Tensor) -> Tensor:
    """The outputs by torch's own operations, from the public list and the weights."""
    values = {"image": image, **network.weights}
    for step in network.graph["steps"]:
        inputs = [values[name] for name in step["inputs"]]
        values[step["output"]] = step_of(step["operation"], inputs, step["parameters"])
    return values[network.graph["output"]]


def step_of(operation: str, inputs: list[Tensor], given: dict[str, Any]) -> Tensor:
    torch_of: Any = functional
    x, *weights = inputs
    if operation == "group_norm":
        assert given["weighted"] == [True, True]
        found = torch_of.group_norm(x, given["groups"], *weights, eps=given["epsilon"])
    elif operation == "scale":
        factor, shift = (each.float()[:, None, None] for each in weights)
        found = x * factor + shift
    elif operation == "max_pool2d":
        parameters = (given["kernel"], given["stride"], given["padding"])
        found = torch_of.max_pool2d(x, *parameters, ceil_mode=True)
        found = found[:, :, : given["size"][0], : given["size"][1]]
    elif operation in {"mean", "amax"}:
        found = getattr(x, operation)(given["axes"], keepdim=given["keep"])
    else:
        found = {
            "conv2d": torch_of.conv2d,
            "relu": torch.relu,
            "add": torch.add,
            "flatten": lambda x: x.flatten(1),
            "linear": torch_of.linear,
        }[operation](x, *weights, **given)
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("model", MODELS, ids=repr)
def test_public_operations_and_weights_give_the_outputs(model: Model) -> None:
    net = trained(model)
    network = read_network(net, SPEC.shape)
    image = torch.randn(1, *SPEC.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted = net(image)
    assert {step["operation"] for step in network.graph["steps"]} <= party.OPERATIONS.keys()
    torch.testing.assert_close(computed(network, image), wanted, atol=1e-5, rtol=1e-5)
    # A clinic, whose weights are others, lists the same operations. So no weight is in the list.
    clinic = read_network(model.build(SPEC, 5), SPEC.shape)
    assert json.dumps(clinic.graph) == json.dumps(network.graph)


ENDS = torch.ones(1, *SPEC.shape, dtype=torch.float64)


@pytest.mark.parametrize("model", MODELS, ids=repr)
def test_bound_holds_for_every_image(model: Model) -> None:
    network = read_network(trained(model), SPEC.shape)
    limits = Limits(product=1.0, variance=1.0)
    bound = largest_part(network, -ENDS, ENDS, limits)
    generator = torch.Generator().manual_seed(3)
    images = 2 * torch.rand(4, *SPEC.shape, generator=generator, dtype=torch.float64) - 1
    for image in (*images[:, None], *images[:, None].sign(), ENDS, -ENDS, 0 * ENDS):
        seen = largest_part(network, image, image, limits)
        # A narrow interval around an image has nearly its values, and they lie inside.
        near = largest_part(network, image - 1e-9, image + 1e-9, limits)
        assert 0 < seen <= near <= bound
        # Groups without any variance have wide bounds, in deep networks and of flat images.
        if isinstance(model, CNN) and len(image.unique()) > 3:
            assert near == pytest.approx(seen, rel=1e-3)


class Known(nn.Module):
    """A convolution by 3, a normalisation of one group by 5, and a mean."""

    def __init__(self, size: float = 3.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)
        self.norm = nn.GroupNorm(1, 1, eps=1e-5)
        values = {"conv.weight": size, "conv.bias": 7.0, "norm.weight": 5.0, "norm.bias": 0.0}
        for name, parameter in self.named_parameters():
            nn.init.constant_(parameter, values[name])

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.norm(self.conv(images)).mean((2, 3))
        return found


def test_largest_part_of_a_known_network() -> None:
    network = read_network(Known(), (1, 1, 2))
    image = torch.tensor([[[[-1.0, 1.0]]]])
    # Products: 3 of the convolution, 7 of the mean's parts, 9 of the squares. Then 5 of the weight.
    assert largest_part(network, image, image, Limits(1.0, 1e9)) == pytest.approx(10.0)
    assert largest_part(network, image, image, Limits(1e9, 1.0)) == pytest.approx(9.00001)
    assert Limits.of(3) == Limits(product=2.0**66, variance=2.0**29)
    assert Limits.of(2) == Limits(product=2.0**22, variance=2.0**19)


@pytest.mark.parametrize("size", [900.0, 1e30, math.nan, math.inf])
def test_network_beyond_the_ring_is_refused(size: float) -> None:
    network = read_network(Known(size), (1, 1, 2))
    images = torch.tensor([[[[0.0, 0.0]]], [[[-1.0, 1.0]]]])
    with pytest.raises(NetworkError, match=r"times the largest one that 2 .*; add a helper"):
        require_in_ring(network, images, None, 2)
    if size == 900.0:
        assert require_in_ring(network, images, (images[1:].fill_(-1), images[1:] * -1), 3) == ""
        return
    with pytest.raises(NetworkError, match=r"largest one that 3 .*; serve a network with smaller"):
        require_in_ring(network, images, None, 3)


def test_made_up_images_alone_give_a_warning() -> None:
    network = read_network(Known(), (1, 1, 2))
    images = torch.tensor([[[[-1.0, 1.0]]]])
    told = require_in_ring(network, images, None, 2)
    assert "1 made-up images give values inside the network up to 0.0017 % of" in told
    wide = (-4000 * torch.ones(1, 1, 1, 2), 4000 * torch.ones(1, 1, 1, 2))
    assert require_in_ring(network, images, wide, 2) == told
    assert require_in_ring(network, images, wide, 3) == ""


class Bending(CNN):
    """A model whose inputs are not the pixels, shifted and scaled."""

    def preprocess(self, images: Tensor) -> Tensor:
        return images.square()


def test_inputs_of_all_images_are_known_of_a_plain_model() -> None:
    for model, is_certain in ((CNN(width=2), True), (Bending(width=2), False)):
        own: Any = SimpleNamespace(model=model, spec=SPEC)
        network = read_network(model.build(SPEC, 0), SPEC.shape)
        assert (sessions.require_in_ring(own, network, 3) == "") is is_certain


@pytest.mark.parametrize("words", [["--public", "public"], ["--spu-python", "none"]])
def test_owner_refuses_before_it_publishes_or_serves(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_federation(sites=2, rounds=1).run(tmp_path / "run")
    opened = Classifier.open
    factor = 1.0

    def scaled(*arguments: Any, **options: Any) -> Classifier:
        found = opened(*arguments, **options)
        with torch.no_grad():
            for each in found.net.parameters():
                each.mul_(factor)
        return found

    monkeypatch.setattr(Classifier, "open", scaled)
    monkeypatch.chdir(tmp_path)
    command = ["serve", "run", "--parties", str(write(tmp_path, TWO)), *words]
    factor = 1e9
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, NetworkError)
    assert "a made-up image gives a value inside the network" in str(done.exception)
    assert not (tmp_path / "public").exists()
    if words[0] == "--public":
        factor = 1.0
        done = CliRunner().invoke(app, command)
        assert (done.exit_code, done.stderr) == (0, "")
        assert (tmp_path / "public").exists()


class Unusual(nn.Module):
    """A network that does a thing that shares cannot."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.conv = nn.Conv2d(3, 3, 3, groups=3 if fault == "groups" else 1)

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.conv(images)
        if self.fault == "sigmoid":
            return maps.sigmoid().mean((2, 3))
        if self.fault == "branch" and maps.sum() > 0:
            return -maps.mean((2, 3))
        if self.fault == "axes":
            return maps.mean((1, 2))
        if self.fault == "product":
            return maps.mean((2, 3)) @ maps[0].mean((1,))[:, :3].relu()
        return maps.mean((2, 3))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("groups", "a convolution with groups"),
        ("sigmoid", "the operation 'sigmoid'"),
        ("branch", "cannot be traced"),
        ("axes", "over other axes"),
        ("product", "the operation '"),
    ],
)
def test_network_of_another_kind_is_refused(fault: str, said: str) -> None:
    with pytest.raises(NetworkError, match="cannot be computed on shares") as raised:
        read_network(Unusual(fault), SPEC.shape)
    assert said in str(raised.value)


def test_volumes_are_refused() -> None:
    with pytest.raises(NetworkError, match="4 axes"):
        read_network(CNN(width=2).build(SPEC, 0), (1, 8, 8, 8))


def chunk(numbers: bytes, total: int) -> bytes:
    """A chunk of a share in protobuf, as the library writes it."""

    def varint(value: int) -> bytes:
        return bytes([value]) if value < 128 else bytes([value % 128 | 128, value // 128])

    return b"\x08" + varint(total) + b"\x1a" + varint(len(numbers)) + numbers


SHARES = st.builds(
    lambda meta, parts: SimpleNamespace(
        meta=meta, share_chunks=[chunk(part, sum(map(len, parts))) for part in parts]
    ),
    st.binary(max_size=40),
    st.lists(st.binary(max_size=200), min_size=1, max_size=3),
)


@given(SHARES)
def test_share_survives_its_bytes(share: SimpleNamespace) -> None:
    data = party.pack(share)
    own = SimpleNamespace(meta=share.meta, share_chunks=[*map(blank, share.share_chunks)])
    assert party.unpack(SimpleNamespace(), data, own) == share
    for end in range(len(data)):
        with pytest.raises(party.SessionError):
            party.unpack(SimpleNamespace(), data[:end], own)


def blank(part: bytes) -> bytes:
    """A chunk of the same form with other numbers."""
    head = party.head_of(part)
    return head + bytes(len(part) - len(head))


@given(SHARES, SHARES)
def test_share_of_another_form_is_refused(share: SimpleNamespace, own: SimpleNamespace) -> None:
    forms = [
        (each.meta, [(party.head_of(part), len(part)) for part in each.share_chunks])
        for each in (share, own)
    ]
    assume(forms[0] != forms[1])
    with pytest.raises(party.SessionError, match="no share of this value"):
        party.unpack(SimpleNamespace(), party.pack(share), own)


@pytest.mark.parametrize(
    "lie",
    [
        chunk(bytes(64), 128),  # the library would read 64 bytes behind the numbers
        chunk(bytes(62), 64) + b"\x1a\x00",  # the last numbers of a message count
        chunk(bytes(65), 65),
    ],
)
def test_share_that_lies_about_its_size_is_refused(lie: bytes) -> None:
    own = SimpleNamespace(meta=b"form", share_chunks=[chunk(bytes(64), 64)])
    data = party.pack(SimpleNamespace(meta=b"form", share_chunks=[lie]))
    with pytest.raises(party.SessionError, match="no share of this value"):
        party.unpack(SimpleNamespace(), data, own)


@pytest.mark.parametrize("text", [b"[" * 30_000, b"9" * 5_000, b" " * 70_000, b"[]", b"\xff"])
def test_message_of_another_form_is_refused(text: bytes) -> None:
    link = party.Link(SimpleNamespace(recv=lambda _sender: text), 0, 2)
    with pytest.raises(party.SessionError, match="no message of this protocol"):
        link.hear(1)


def test_reason_of_another_party_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    participation = sessions.Participation(
        role="helper",
        parties=Parties({}),
        tls=None,
        python=Path("python"),
        model="",
        network=SharedNetwork({}, {}),
    )
    event = {"event": "failed", "reason": "no\n\x1b[2Jserving"}
    process: Any = None
    with caplog.at_level("WARNING"):
        participation._handle(process, event, None)
    assert caplog.messages == [r"a session ended: no\n\x1b[2Jserving"]


def write(folder: Path, text: str) -> Path:
    path = folder / "parties.toml"
    path.write_text(text, "utf-8")
    return path


TWO = 'clinic = "127.0.0.1:9000"\nowner = "127.0.0.1:9001"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('clinic = "127.0.0.1:9000"\n', 'owner must be "HOST:PORT"'),
        (TWO + "helper = 5\n", 'helper must be "HOST:PORT"'),
        (TWO.replace("9001", "99999"), 'owner must be "HOST:PORT"'),
        (TWO.replace("9001", "0000099999"), 'owner must be "HOST:PORT"'),
        (TWO.replace("9001", "9000"), "two parties have one address"),
        (TWO + 'dealer = "127.0.0.1:9002"\n', "'dealer' is no party"),
        ("clinic = ", "is not valid TOML"),
    ],
)
def test_parties_file_with_a_fault_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(CohortiumError) as raised:
        Parties.read(write(tmp_path, text), "clinic")
    assert said in str(raised.value)


def test_two_parties_have_no_helper(tmp_path: Path) -> None:
    path = write(tmp_path, TWO)
    assert list(Parties.read(path, "owner").addresses) == ["clinic", "owner"]
    with pytest.raises(RequestError, match="has no helper; add"):
        Parties.read(path, "helper")


def test_parties_of_this_machine_may_have_ipv6_addresses(tmp_path: Path) -> None:
    text = TWO.replace("127.0.0.1", "[::1]")
    Parties.read(write(tmp_path, text), "clinic").require_loopback()


def test_other_machines_need_tls(tmp_path: Path) -> None:
    path = write(tmp_path, TWO.replace("127.0.0.1:9001", "model.example:9001"))
    done = CliRunner().invoke(app, ["predict", "none", "none", "--parties", str(path)])
    assert isinstance(done.exception, RequestError)
    assert "without TLS only this machine may be named" in str(done.exception)
    with pytest.raises(RequestError, match="needs both --certificate and --ca"):
        TlsFiles.of(path, None, None, option="--ca")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serve", "none", "--helper"], "are for --parties"),
        (["predict", "none", "none", "--spu-python", "p"], "is for --parties"),
        (["predict", "none", "none", "--parties", "p", "--encrypted", "u"], "two ways"),
        (["predict", "none", "none", "--parties", "p", "--weights", "best"], "has no --masks"),
        (["serve", "none", "--helper", "--parties", "p", "--max-answers", "1"], "has no --max"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words: list[str], said: str) -> None:
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, RequestError)
    assert said in str(done.exception)


def test_python_without_the_library_is_named(tmp_path: Path) -> None:
    # An isolated Python finds no package in this folder, so it is a Python without SPU anywhere.
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys._base_executable} -S "$@"\n', "utf-8")  # type: ignore[attr-defined]
    bare.chmod(0o755)
    job = {"rank": 0, "addresses": ["", ""], "graph": {}}
    with (
        PartyProcess.start(bare, job, {"image": np.zeros(1)}) as process,
        pytest.raises(RequestError, match="has no package 'numpy'"),
    ):
        list(process.events())
    with pytest.raises(RequestError, match="cannot start"):
        PartyProcess.start(tmp_path / "none", job, {})
    with (
        PartyProcess.start(
            Path("/bin/true"), job, {"image": np.zeros(math.prod((64, 64, 64)))}
        ) as process,
        pytest.raises(RequestError, match="ends before the party is ready"),
    ):
        list(process.events())
