"""Time and memory of one training step of DPResNet: plain, private, and by Opacus' three ways.

    python tests/benchmarks/private_step.py --batch 64 --width 64 --repeat 7

Each contender lives in a process of its own, so that its peak memory can be told; they take
turns, step by step, so that whatever else the machine does falls on all alike.  Every private
step clips to 7, adds Gaussian noise from torch's generator and takes a step of SGD.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    import torch
    from torch import nn

Step = Callable[[], None]
CLIP, NOISE, RATE = 7.0, 1.0, 1e-3


def plain(net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Step:
    import torch
    from torch.nn import functional

    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(net(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def cohortium(net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Step:
    import numpy as np
    import torch
    from torch.nn import functional

    from cohortium.clipping.clipped_sum import clipped_sum

    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)

    def losses(batch: Any) -> torch.Tensor:
        index = torch.from_numpy(batch).to(images.device)
        return functional.cross_entropy(net(images[index]), labels[index], reduction="none")

    def step() -> None:
        clipped_sum(net, losses, np.arange(len(images)), clip=CLIP)
        for parameter in net.parameters():
            assert parameter.grad is not None
            noise = torch.normal(0.0, NOISE * CLIP, parameter.shape, device=images.device)
            parameter.grad.add_(noise).div_(len(images))
        optimizer.step()

    return step


def opacus(
    net: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, functorch: bool = False
) -> Step:
    import torch
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    wrapped = GradSampleModule(net, force_functorch=functorch)
    optimizer = DPOptimizer(
        torch.optim.SGD(wrapped.parameters(), lr=RATE), noise_multiplier=NOISE,
        max_grad_norm=CLIP, expected_batch_size=len(images),
    )  # fmt: skip

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(wrapped(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def functorch(net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Step:
    return opacus(net, images, labels, functorch=True)


def ghost(net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Step:
    import torch
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    wrapped = GradSampleModuleFastGradientClipping(net, max_grad_norm=CLIP, use_ghost_clipping=True)
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(wrapped.parameters(), lr=RATE), noise_multiplier=NOISE,
        max_grad_norm=CLIP, expected_batch_size=len(images),
    )  # fmt: skip
    criterion = DPLossFastGradientClipping(wrapped, optimizer, torch.nn.CrossEntropyLoss())

    def step() -> None:
        optimizer.zero_grad()
        criterion(wrapped(images), labels).backward()
        optimizer.step()

    return step


CONTENDERS: dict[str, Callable[[nn.Module, torch.Tensor, torch.Tensor], Step]] = {
    "plain": plain,
    "cohortium": cohortium,
    "opacus, hooks": opacus,
    "opacus, functorch": functorch,
    "opacus, ghost": ghost,
}


def work(name: str, sizes: tuple[int, int, int], device: str, pipe: Connection) -> None:
    """Take a step whenever told to; answer how long it took and the peak memory so far, in MiB."""
    import torch

    from cohortium.plugin import DataSpec, Multiclass
    from cohortium_dpresnet import DPResNet

    batch, width, threads = sizes
    warnings.filterwarnings("ignore")
    torch.set_num_threads(threads)
    classes = tuple("abcdefgh")
    spec = DataSpec(channels=3, size=(28, 28), task=Multiclass(classes), examples=batch)
    net = DPResNet(width=width).build(spec, 0).to(device)
    images = torch.randn(batch, 3, 28, 28).to(device)
    labels = torch.randint(0, len(classes), (batch,)).to(device)
    on_card = device.startswith("cuda")
    step = CONTENDERS[name](net, images, labels)
    while pipe.recv() == "step":
        start = time.perf_counter()
        step()
        if on_card:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if on_card:
            peak = torch.cuda.max_memory_allocated() / 2**20
        pipe.send((seconds, peak))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for name in CONTENDERS:
        pipes[name], end = context.Pipe()
        sizes = (options.batch, options.width, options.threads)
        arguments = (name, sizes, options.device, end)
        context.Process(target=work, args=arguments, daemon=True).start()
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    peak = {}
    for turn in range(options.repeat + 1):
        for name, pipe in pipes.items():
            pipe.send("step")
            took, peak[name] = pipe.recv()
            if turn:  # the first step warms up
                seconds[name].append(took)
    rows = []
    for name in CONTENDERS:
        pipes[name].send("stop")
        median = statistics.median(seconds[name])
        # A turn's ratio compares steps that were taken one right after the other.
        ratios = [a / b for a, b in zip(seconds[name], seconds["plain"], strict=True)]
        row = {
            "name": name, "seconds": round(median, 4),
            "ratio": round(statistics.median(ratios), 2), "fastest": round(min(seconds[name]), 4),
            "peak_mib": round(peak[name]), "peak_ratio": round(peak[name] / peak["plain"], 2),
        }  # fmt: skip
        rows.append(row)
        print(json.dumps(row), flush=True)
    head = f"width {options.width}, batch {options.batch}"
    print(f"\n| {head} | seconds | × plain | peak MiB | × plain |")
    print("| --- | ---: | ---: | ---: | ---: |")
    line = "| {name} | {seconds:.3f} | {ratio:.2f} | {peak_mib} | {peak_ratio:.2f} |"
    for r in rows:
        print(line.format(**r))


if __name__ == "__main__":
    main()
