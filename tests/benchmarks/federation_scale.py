"""What a round costs: against the number of sites, and against the number of parameters.

    python tests/benchmarks/federation_scale.py --over sites --out docs/figures
    python tests/benchmarks/federation_scale.py --over parameters --out docs/figures

`sites` runs 10 to 1,000 sites with the network and the work of `federation.py`.  `parameters` runs
five sites that take one step on eight images with a network of two linear layers, of 10⁴ to 10⁸
parameters.  Both run the engine `inline` with `plain` and with `secagg`, each in a process of its
own.  A round's seconds are those of the processor, over all threads, the first round left out;
memory is the peak of the process.  Figures go to `cost-sites.json` or
`cost-parameters.json`, and a drawing of them beside it; `--plot` only draws again.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from federation import RATE, Clock, RandomImages
from torch import nn

from cohortium import Federation
from cohortium.plugin import Aggregator
from cohortium_fedavg import FedAvg
from cohortium_module import Module
from cohortium_plain import Plain
from cohortium_secagg import SecAgg

POINTS = {
    "sites": [10, 32, 100, 316, 1_000],
    "parameters": [10**4, 10**5, 10**6, 10**7, 10**8],
}

AGGREGATORS: dict[str, Aggregator] = {"plain": Plain(), "secagg": SecAgg()}

COLOURS = {"plain": "#7a8699", "secagg": "#0b6e99"}

PIXELS, CLASSES, FEW = 3 * 28 * 28, 8, 8
"""Of an image; of all; and images at a site where parameters are what counts."""


def layers(classes: int, parameters: int) -> nn.Module:
    """A network of about so many parameters, in two layers."""
    hidden = round(parameters / (PIXELS + 1 + classes))
    return nn.Sequential(
        nn.Flatten(), nn.Linear(PIXELS, hidden), nn.ReLU(), nn.Linear(hidden, classes)
    )


def study(over: str, size: int, name: str) -> Federation:
    """What is run for one point."""
    model = Module(module="federation:network")
    if over == "parameters":
        model = Module(module=f"{Path(__file__).stem}:layers", arguments={"parameters": size})
    sites, steps, batch = (size, 5, 32) if over == "sites" else (5, 1, FEW)
    return Federation(
        dataset=RandomImages(sites * steps * batch),
        model=model,
        trainer=FedAvg(batch_size=batch, learning_rate=RATE / 10),
        privatizer="none",
        aggregator=AGGREGATORS[name],
        sites=sites,
        rounds=4 if size <= 10**7 else 3,
        threads=1,
    )


def point(over: str, size: int, name: str) -> dict[str, Any]:
    """The figures of one run, in this process."""
    clock = Clock()
    result = study(over, size, name).run(observers=[clock])
    if result.dropouts:
        raise AssertionError("a site was lost")
    rounds = [(b[1] - a[1], b[0] - a[0]) for a, b in pairwise(clock.ticks)]
    return {
        over: size,
        "aggregator": name,
        "seconds": statistics.median(cpu for cpu, _ in rounds),
        "wall": statistics.median(wall for _, wall in rounds),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "upload_mb": result.max_upload_bytes / 1e6,
    }


def measured(over: str, most: int) -> list[dict[str, Any]]:
    """Every point, in a process of its own."""
    found = []
    for size in (size for size in POINTS[over] if size <= most):
        for name in AGGREGATORS:
            command = [sys.executable, __file__, "--over", over, "--point", str(size), name]
            done = subprocess.run(command, capture_output=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
            print(json.dumps(found[-1]), flush=True)
    return found


def plot(over: str, points: list[dict[str, Any]], path: Path) -> None:
    """Seconds of a round against what grows, both on logarithmic scales, with a straight line."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": over, "font.size": 10}
    figure, axes = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
    for name in AGGREGATORS:
        mine = [p for p in points if p["aggregator"] == name]
        sizes, seconds = [p[over] for p in mine], [p["seconds"] for p in mine]
        axes.plot(sizes, seconds, "o-", color=COLOURS[name], label=name, markersize=4)
    last = points[-1]
    line = [last["seconds"] * size / last[over] for size in sizes]
    axes.plot(sizes, line, ":", color="#999999", label="in proportion")
    axes.set(xscale="log", yscale="log", xlabel=over, ylabel="seconds of a round")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure, write down and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--over", choices=sorted(POINTS), required=True)
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--most", type=float, default=1e9, help="leave out larger points")
    parser.add_argument("--plot", action="store_true", help="draw the figures that are there")
    parser.add_argument("--point", nargs=2, help="a size and an aggregator: run this one, here")
    arguments = parser.parse_args()
    over = arguments.over
    if arguments.point:
        torch.set_num_threads(1)
        size, name = arguments.point
        print(json.dumps(point(over, int(size), name)))
        return
    file = arguments.out / f"cost-{over}.json"
    if not arguments.plot:
        file.parent.mkdir(parents=True, exist_ok=True)
        points = measured(over, int(arguments.most))
        file.write_text(json.dumps(points, indent=1) + "\n")
    plot(over, json.loads(file.read_text()), file.with_suffix(".svg"))


if __name__ == "__main__":
    main()
