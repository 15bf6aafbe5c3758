"""Inference on secret shares between processes: a clinic, a model's owner and a helper.

The tests need a Python with SPU: the one that COHORTIUM_SPU_PYTHON names, or this one.
`nox -s shares` makes an environment of its own for it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cohortium.catalog.networks import build_network
from cohortium.inference.shared.network import read_network
from cohortium.inference.shared.process import PROGRAM
from cohortium.inference.shared.value_sizes import Limits
from cohortium.plugin import Model
from cohortium_cnn import CNN
from cohortium_dpresnet import DPResNet
from cohortium_phantom import Phantom
from cohortium_resnet9 import ResNet9
from cohortium_vgg16 import VGG16
from tests.support.federations import tiny_federation
from tests.support.inference_services import (
    cohortium,
    predicted,
    service,
    write_certificates,
    write_slides,
)

PYTHON = os.environ.get("COHORTIUM_SPU_PYTHON") or sys.executable

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "COHORTIUM_SPU_PYTHON" not in os.environ and importlib.util.find_spec("spu") is None,
        reason="no Python with spu: name one in COHORTIUM_SPU_PYTHON",
    ),
]

DATA = Phantom(examples=60, validation=0, test=2)
MODEL = CNN(width=2)

PLAIN = """
import importlib.util, io, json, sys
import jax
import numpy as np
spec = importlib.util.spec_from_file_location("party", sys.argv[1])
party = importlib.util.module_from_spec(spec)
spec.loader.exec_module(party)
for _ in range(int(sys.argv[2])):
    job = json.loads(sys.stdin.buffer.readline())
    arrays = np.load(io.BytesIO(sys.stdin.buffer.read(job["bytes"])), allow_pickle=False)
    weights = [arrays[each["name"]] for each in job["graph"]["weights"]]
    print(np.asarray(jax.jit(party.network(job["graph"]))(arrays["image"], *weights))[0].tolist())
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, the clinics' part of it, two images, and certificates."""
    folder = tmp_path_factory.mktemp("shared")
    federation = tiny_federation(dataset=DATA, model=MODEL, trainer="fedavg", sites=2, rounds=3)
    federation.run(folder / "run")
    write_slides(folder, DATA)
    write_certificates(folder)
    write_parties(folder / "three.toml", ["clinic", "owner", "helper"])
    write_parties(folder / "two.toml", ["clinic", "owner"])
    done = cohortium(folder, "serve", "run", "--public", "public", "--parties", "three.toml")
    assert (done.returncode, done.stdout) == (0, "public\n"), done.stderr
    return folder


def write_parties(path: Path, roles: list[str]) -> None:
    """Write addresses that are free now, each held until all are chosen."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in roles]
        for each in held:
            each.bind(("127.0.0.1", 0))
        lines = [
            f'{role} = "127.0.0.1:{each.getsockname()[1]}"\n'
            for role, each in zip(roles, held, strict=True)
        ]
    path.write_text("".join(lines), "utf-8")


@contextlib.contextmanager
def serving(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A party in a process of its own, once it waits for the others."""
    whole = (*words, "--spu-python", PYTHON)
    with service(folder, *whole, begins="waiting as ", end=signal.SIGKILL) as (_, process):
        yield process


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    """Read the log up to a line that begins with a text."""
    assert process.stderr is not None
    assert any(line.startswith(text) for line in process.stderr), text


def test_networks_in_jax_are_the_plain_networks() -> None:
    spec = DATA.load().spec
    models: list[Model] = [
        CNN(width=2),
        DPResNet(width=2, standardise=True),
        ResNet9(width=2),
        VGG16(width=2),
    ]
    sent, wanted = io.BytesIO(), []
    for model in models:
        net = build_network(model, spec, 0)
        for layer in net.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                assert layer.running_mean is not None
                layer.running_mean.copy_(torch.linspace(-1, 1, layer.num_features))
        network = read_network(net, spec.shape)
        image = torch.randn(1, *spec.shape, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            wanted.append(net.eval()(image)[0].tolist())
        arrays = io.BytesIO()
        np.savez(arrays, allow_pickle=False, image=image.numpy(), **network.arrays())
        data = arrays.getvalue()
        job = {"graph": network.graph, "bytes": len(data)}
        sent.write(json.dumps(job).encode() + b"\n" + data)
    done = subprocess.run(
        [PYTHON, "-I", "-c", PLAIN, PROGRAM, str(len(models))],
        input=sent.getvalue(),
        capture_output=True,
        check=True,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_clinic_gets_the_probabilities_of_the_plain_network(home: Path) -> None:
    names, wanted = predicted(cohortium(home, "predict", "run", "slides", "--json").stdout)
    common = ("--parties", "three.toml", "--key")
    tls = functools.partial(serving, home)
    owner = ("service.pem", "--certificate", "service.pem", "--clients", "ca.pem")
    helper = ("other.pem", "--certificate", "other.pem", "--clients", "ca.pem")
    clinic = ("clinic.pem", "--certificate", "clinic.pem", "--ca", "ca.pem")
    ask = ("predict", "public", "slides", "--json", "--spu-python", PYTHON, *common, *clinic)
    with (
        tls("run", *common, *owner, "--max-answers", "2") as process,
        tls("public", *common, *helper, "--helper"),
    ):
        require_certificate(home)
        done = cohortium(home, *ask)
        assert done.returncode == 0, done.stderr
        found_names, found = predicted(done.stdout)
        assert found_names == names
        assert 0.2 < wanted.max() < 0.99  # a network that is sure would hide a wrong output
        np.testing.assert_allclose(found, wanted, atol=1e-4)
        wait_for(process, "waiting as owner")  # in its next session
        spent = cohortium(home, *ask)
        assert (spent.returncode, spent.stdout) == (1, "")
        assert spent.stderr == "cohortium: the owner refuses: the limit of 2 images is reached.\n"


def require_certificate(folder: Path) -> None:
    """Connect to the owner without a certificate, which it refuses."""
    host, _, port = tomllib.loads((folder / "three.toml").read_text())["owner"].partition(":")
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    plain = socket.create_connection((host, int(port)))
    with (
        context.wrap_socket(plain, server_hostname=host) as connection,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        connection.recv(1)  # in TLS 1.3 a client learns it with the first answer


def test_two_parties_compute_one_model_alone(home: Path) -> None:
    _, wanted = predicted(cohortium(home, "predict", "run", "slides", "--json").stdout)
    other = (home / "public" / "model.toml").read_text("utf-8").replace("2", "3")
    (home / "changed").mkdir()
    (home / "changed" / "model.toml").write_text(other, "utf-8")
    facts = (home / "public" / "dataset.json").read_bytes()
    (home / "changed" / "dataset.json").write_bytes(facts)
    ask = ("slides", "--json", "--parties", "two.toml", "--spu-python", PYTHON)
    with serving(home, "run", "--parties", "two.toml") as process:
        wrong = cohortium(home, "predict", "changed", *ask)
        assert (wrong.returncode, wrong.stdout) == (1, "")
        assert wrong.stderr.startswith("cohortium: another party has another model or version;")
        wait_for(process, "a session ended: another party has another")
        wait_for(process, "waiting as owner")
        done = cohortium(home, "predict", "public", *ask)
        assert done.returncode == 0, done.stderr
        np.testing.assert_allclose(predicted(done.stdout)[1], wanted, atol=1e-3)


LIMITS = """
import importlib.util, json, sys
import numpy as np
import spu
from spu.utils import simulation
spec = importlib.util.spec_from_file_location("party", sys.argv[1])
party = importlib.util.module_from_spec(spec)
spec.loader.exec_module(party)
parties, product, variance = int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
kind, ring, bits = party.PROTOCOLS[parties]
config = spu.RuntimeConfig(
    protocol=getattr(spu.ProtocolKind, kind), field=getattr(spu.FieldType, ring),
    fxp_fraction_bits=bits,
)
simulator = simulation.Simulator(parties, config)
compute = lambda function, *inputs: np.asarray(simulation.sim_jax(simulator, function)(*inputs))
unit = np.linspace(-1, 1, 16).reshape(1, 1, 4, 4)
unit = (unit / unit.std()).astype(np.float32)
norm = lambda x: party._group_norm(x, groups=1, epsilon=1e-5, weighted=[False, False])
mean = lambda x: party._mean(x, axes=[2, 3], keep=False)
found = []
for part in (0.5, 4.0):
    side = np.full((1, 4), np.sqrt(part * product) / 2, np.float32)
    signs = np.array([[1], [-1]], np.float32)
    found.append([
        float(np.abs(compute(party._linear, side, side * signs) / part / product - signs.T).max()),
        float(np.abs(compute(mean, 0 * unit + np.float32(part * product)) / (part * product) - 1)),
        float(np.abs(compute(norm, unit * np.float32(np.sqrt(part * variance))) - unit).max()),
    ])
print(json.dumps(found))
"""


@pytest.mark.parametrize("parties", [2, 3])
def test_ring_holds_values_up_to_its_limits(parties: int) -> None:
    """Half of a limit is computed, and four times a limit is not, without any error."""
    limits = Limits.of(parties)
    done = subprocess.run(
        [PYTHON, "-c", LIMITS, PROGRAM, str(parties), str(limits.product), str(limits.variance)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    below, beyond = json.loads(done.stdout.splitlines()[-1])
    assert max(below) < 0.01
    assert min(beyond) > 0.1
