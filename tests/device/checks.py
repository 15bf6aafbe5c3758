"""Checks and measurements of one graphics card, written to one JSON file with all versions.

    tests/device/run [--device cuda] [--out FOLDER] [--minutes 9] [--quick]

In turn: clipped sums on the card against those of the processor; a run on the card against one on
the processor, and one that is stopped and resumed; the ratio of a private step of `dpresnet`; and
the paper's configuration at ten sites, with and without privacy, on BloodMNIST-19 if
`COHORTIUM_DATA` has it.  A part that no longer fits into the minutes is left out, and the file says
so.  The exit status is 1 if a check failed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import frozen
from torch.nn import functional

from cohortium import Federation
from cohortium.catalog.networks import build_network
from cohortium.clipping.clipped_sum import clipped_sum
from cohortium.errors import StoppedError
from cohortium.plugin import DataSpec, Model, Multiclass, RoundCompleted, parameters
from cohortium_cnn import CNN
from cohortium_dpresnet import DPResNet
from cohortium_fedavg import FedAvg
from cohortium_gaussian import Gaussian
from cohortium_phantom import Phantom
from cohortium_resnet9 import ResNet9
from cohortium_resnet18 import ResNet18
from cohortium_vgg16 import VGG16
from tests.support.federations import RecordingObserver

ROOT = Path(__file__).parents[2]
CLOSE = 1e-4
"""Largest allowed gap of a clipped sum, in clips: single precision, summed in another order."""

NETWORKS: tuple[Model, ...] = (
    CNN(width=8),
    DPResNet(width=16),
    ResNet9(width=8, norm="group"),
    ResNet18(width=8, norm="group"),
    VGG16(width=4),
)
PACKAGES = ("torch", "numpy", "opacus", "attrs", "cohortium")


@frozen
class Options:
    """Options of the command line."""

    device: str
    quick: bool


class CheckError(Exception):
    """A check that failed."""


def environment(options: Options) -> dict[str, Any]:
    """Return the versions, and the name of the card."""
    found: dict[str, Any] = {name: importlib.metadata.version(name) for name in PACKAGES}
    found |= {"python": platform.python_version(), "processor": platform.machine()}
    if options.device.startswith("cuda"):
        found |= {"card": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return found | {"commit": commit.stdout.strip() or None}


def clipped_sums(options: Options) -> dict[str, Any]:
    """Compare clipped sums on the card with those of the processor, in double precision too."""
    spec = DataSpec(channels=3, size=(28, 28), task=Multiclass(tuple("abcdefgh")), examples=64)
    gaps = {}
    for model in NETWORKS:
        name = type(model).__name__
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(16, 3, 28, 28, generator=generator)
        labels = torch.randint(0, 8, (16,), generator=generator)
        sums = []
        for device in ("cpu", options.device):
            net = build_network(model, spec, 0).to(device).train()
            on_device, wanted = images.to(device), labels.to(device)

            def losses(batch: Any, net: Any = net, x: Any = on_device, y: Any = wanted) -> Any:
                index = torch.from_numpy(batch).to(x.device)
                return functional.cross_entropy(net(x[index]), y[index], reduction="none")

            clipped_sum(net, losses, np.arange(16), clip=0.1)
            sums.append(parameters.flatten_gradients(net, before=parameters.flatten(net)).cpu())
        gaps[name] = float((sums[0] - sums[1]).norm()) / 0.1
        if not gaps[name] <= CLOSE * 16:
            raise CheckError(f"{name}: the clipped sums differ by {gaps[name]:.3g} clips")
    return gaps


def study(device: str, **changes: Any) -> Federation:
    """Return a small private study."""
    given: dict[str, Any] = {
        "dataset": Phantom(examples=400, validation=0, test=100),
        "partitioner": "iid",
        "model": "cnn",
        "trainer": FedAvg(local_steps=2, batch_size=32),
        "privatizer": Gaussian(epsilon=6.0),
        "aggregator": "secagg",
        "sites": 5,
        "rounds": 3,
        "insecure_seeded_secrets": True,
        "device": device,
    }
    return Federation(**(given | changes))


def runs(options: Options) -> dict[str, Any]:
    """Compare a run on the card with one on the processor, and a stopped one with a whole one."""
    with tempfile.TemporaryDirectory() as place:
        weights = []
        for turn, device in enumerate(("cpu", options.device)):
            study(device).run(Path(place) / f"whole-{turn}")
            weights.append(last_weights(Path(place) / f"whole-{turn}"))
        first, whole = weights
        gap = max(float((first[name] - tensor).abs().max()) for name, tensor in whole.items())
        if not gap <= 1e-3:
            raise CheckError(f"the weights of both devices differ by {gap:.3g}")
        part, seen = Path(place) / "part", RecordingObserver()
        try:
            study(options.device).run(
                part, observers=[seen], stop=lambda: bool(seen.of(RoundCompleted))
            )
        except StoppedError:
            study(options.device).resume(part)
        resumed = last_weights(part)
        same = all(torch.equal(whole[name], tensor) for name, tensor in resumed.items())
        return {"largest_gap_to_processor": gap, "resumed_run_has_equal_bits": same}


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a run."""
    from safetensors.torch import load_file

    return load_file(folder / "weights" / "last.safetensors")


def private_step(options: Options) -> list[dict[str, Any]]:
    """Return the time and memory of a private step of `dpresnet`, of all contenders."""
    width, batch, repeat = ("4", "8", "2") if options.quick else ("64", "64", "15")
    done = subprocess.run(
        [
            sys.executable, ROOT / "tests" / "benchmarks" / "private_step.py", "--device",
            options.device, "--width", width, "--batch", batch, "--repeat", repeat,
        ],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def paper(options: Options) -> dict[str, Any]:
    """Run the paper's configuration at ten sites, with and without privacy."""
    data = Path(os.environ.get("COHORTIUM_DATA", ".")) / "bloodmnist_19.npz"
    if not data.is_file():
        return {"left out": "COHORTIUM_DATA has no bloodmnist_19.npz"}
    found = {}
    for privacy in ("off",) if options.quick else ("off", "example", "site"):
        changes = ["federation.threads=0", f"federation.device={options.device}"]
        scale = "narrow" if options.quick else "full"
        with tempfile.TemporaryDirectory() as place:
            began = time.perf_counter()
            command: list[str | Path] = [
                sys.executable, "-m", "cohortium", "run", ROOT / "docs/studies/paper.toml",
                "--only", "sites=10", "--only", f"privacy={privacy}",
                "--only", "secagg=on", "--only", f"scale={scale}", "--only", "seed=1",
                "--out", Path(place) / "grid",
            ]  # fmt: skip
            for change in changes:
                command += ["--set", change]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise CheckError(f"privacy={privacy}: {done.stderr.strip().splitlines()[-1]}")
            (result,) = Path(place).rglob("result.json")
            scores = json.loads(result.read_text("utf-8"))
            found[privacy] = {
                "scores": scores["scores"]["metrics"],
                "guarantee": scores["guarantee"],
                "seconds": round(time.perf_counter() - began, 1),
            }
    return found


PARTS: dict[str, tuple[float, Callable[[Options], Any]]] = {
    "clipped sums": (0.5, clipped_sums),
    "runs": (1.0, runs),
    "private step": (1.5, private_step),
    "paper": (5.0, paper),
}
"""Minutes that a part may take on one card, and the part."""


def main() -> int:
    """Run all parts, write the file, and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "device" / "results")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the program out")
    given = parser.parse_args()
    options, began = Options(given.device, given.quick), time.perf_counter()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("torch sees no card here; use --device cpu --quick to try the program out.")
        return 2
    report: dict[str, Any] = {"device": options.device, "quick": options.quick}
    report["environment"] = environment(options)
    failed: list[str] = []
    for name, (minutes, part) in PARTS.items():
        left = given.minutes - (time.perf_counter() - began) / 60
        if left < minutes and not options.quick:
            report[name] = {"left out": f"{left:.1f} of {given.minutes:g} minutes were left"}
            continue
        start = time.perf_counter()
        try:
            found = part(options)
        except Exception as error:  # noqa: BLE001 - the other parts shall run all the same
            traceback.print_exc()
            found, failed = {"failed": str(error)}, [*failed, name]
        report[name] = {"seconds": round(time.perf_counter() - start, 1), "found": found}
        print(f"{name}: {json.dumps(report[name])}", flush=True)
        given.out.mkdir(parents=True, exist_ok=True)
        card = report["environment"].get("card", options.device).replace(" ", "-").lower()
        (given.out / f"{card}.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
