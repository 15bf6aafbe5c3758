"""Seconds, bytes and errors of inference on secret shares, over sockets of this machine.

    python tests/benchmarks/shared.py SPU_PYTHON PARTIES MODEL [IMAGES]

PARTIES is 2 or 3, and MODEL `cnn` or `dpresnet`, at width 16.  The weights are random, with a last
layer large enough that the probabilities differ.  The images are noise.  The bytes are those of the
loopback interface, in all directions, so no other program should use it.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch

from cohortium.inference.shared.network import SharedNetwork, read_network
from cohortium.inference.shared.parties import ROLES, Parties
from cohortium.inference.shared.process import PartyProcess
from cohortium.inference.shared.sessions import Participation
from cohortium.plugin import Model
from cohortium_cnn import CNN
from cohortium_dpresnet import DPResNet
from cohortium_phantom import Phantom

MODELS: dict[str, Model] = {"cnn": CNN(width=16), "dpresnet": DPResNet(width=16)}


def loopback_bytes() -> int:
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.strip().startswith("lo:"))


def free_addresses(number: int) -> list[str]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    found = [f"127.0.0.1:{each.getsockname()[1]}" for each in held]
    for each in held:
        each.close()
    return found


def follow(process: PartyProcess, log: list[tuple[float, int, list[float]]]) -> None:
    for event in process.events():
        if event["event"] == "asked":
            process.reply(None)
        if event["event"] in {"connected", "output"}:
            log.append((time.perf_counter(), loopback_bytes(), event.get("values", [])))
        assert event["event"] != "failed", event


def measure(python: Path, parties: int, name: str, count: int) -> None:
    spec = Phantom(examples=8, validation=0, test=0).load().spec
    net = MODELS[name].build(spec, 0)
    with torch.no_grad():
        next(layer for layer in net.modules() if isinstance(layer, torch.nn.Linear)).weight.mul_(8)
    network: SharedNetwork = read_network(net, spec.shape)
    stored = spec.sample_images(count, np.random.default_rng(1))
    images = MODELS[name].preprocess(torch.from_numpy(stored).float() / 255)
    with torch.no_grad():
        wanted = net(images)
    addresses = Parties(dict(zip(ROLES, free_addresses(parties), strict=False)))
    logs: list[list[tuple[float, int, list[float]]]] = [[] for _ in range(parties)]
    threads, processes = [], []
    for role, log in zip(addresses.addresses, logs, strict=True):
        own = Participation(
            role=role, parties=addresses, tls=None, python=python, model="", network=network
        )
        secret = {"clinic": {"image": images.numpy()}, "owner": network.arrays()}.get(role, {})
        processes.append(own.start(secret))
        threads.append(threading.Thread(target=follow, args=(processes[-1], log)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    for process in processes:
        with process:
            pass
    clinic = logs[0]
    outputs = torch.tensor([values for _, _, values in clinic[1:]])
    error = (outputs.softmax(1) - wanted.softmax(1)).abs().max()
    seconds = np.diff([moment for moment, _, _ in clinic])
    megabytes = np.diff([total for _, total, _ in clinic]) / 1e6
    print(
        f"| `{name}` | {parties} | {seconds[0]:.1f} | {np.median(seconds[1:]):.1f} "
        f"| {megabytes[0]:.1f} | {np.median(megabytes[1:]):.1f} | {error:.0e} |"
    )
    print(f"largest probability {wanted.softmax(1).max():.2f}", file=sys.stderr)


if __name__ == "__main__":
    measure(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int((*sys.argv[4:], "5")[0]))
