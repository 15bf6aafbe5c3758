"""Time and memory of one training step of a U-Net: plain and private.

    python tests/benchmarks/unet_step.py --batch 16 --side 64 --width 16 --depth 3 --repeat 9

The loss of an image is the mean cross-entropy of its pixels and the soft Dice loss of its classes.
Each contender lives in a process of its own, so that its peak memory can be told; they take
turns, step by step, so that whatever else the machine does falls on all alike.  Seconds are those
of the processor, over all threads.  The private step clips to 1, adds Gaussian noise from torch's
generator and takes a step of SGD.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cohortium_segmentation import Segmentation

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    import torch
    from torch import nn

Step = Callable[[], None]
CLIP, NOISE, RATE = 1.0, 1.0, 1e-3
TASK = Segmentation(("background", "organ", "tumour"))


def plain(net: nn.Module, images: torch.Tensor, masks: torch.Tensor) -> Step:
    import torch

    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)

    def step() -> None:
        optimizer.zero_grad()
        TASK.losses(net(images), masks).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def cohortium(net: nn.Module, images: torch.Tensor, masks: torch.Tensor) -> Step:
    import numpy as np
    import torch

    from cohortium.clipping.clipped_sum import clipped_sum

    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)

    def losses(batch: Any) -> torch.Tensor:
        index = torch.from_numpy(batch)
        return TASK.losses(net(images[index]), masks[index])

    def step() -> None:
        clipped_sum(net, losses, np.arange(len(images)), clip=CLIP)
        for parameter in net.parameters():
            assert parameter.grad is not None
            noise = torch.normal(0.0, NOISE * CLIP, parameter.shape)
            parameter.grad.add_(noise).div_(len(images))
        optimizer.step()

    return step


CONTENDERS: dict[str, Callable[[nn.Module, torch.Tensor, torch.Tensor], Step]] = {
    "plain": plain,
    "cohortium": cohortium,
}


def work(name: str, options: argparse.Namespace, pipe: Connection) -> None:
    """Take a step whenever told to; answer how long it took and the peak memory so far, in MiB."""
    import torch

    from cohortium.plugin import DataSpec
    from cohortium_unet import UNet

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    size = (options.side,) * options.rank
    spec = DataSpec(channels=1, size=size, task=TASK, examples=options.batch)
    net = UNet(width=options.width, depth=options.depth).build(spec, 0)
    images = torch.randn(options.batch, *spec.shape)
    masks = torch.randint(0, len(TASK.names), (options.batch, *size), dtype=torch.uint8)
    step = CONTENDERS[name](net, images, masks)
    while pipe.recv() == "step":
        start = time.process_time()
        step()
        seconds = time.process_time() - start
        pipe.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--rank", type=int, default=2)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for name in CONTENDERS:
        pipes[name], end = context.Pipe()
        context.Process(target=work, args=(name, options, end), daemon=True).start()
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    peak = {}
    for turn in range(options.repeat + 1):
        for name, pipe in pipes.items():
            pipe.send("step")
            took, peak[name] = pipe.recv()
            if turn:  # the first step warms up
                seconds[name].append(took)
    shape = "×".join([str(options.side)] * options.rank)
    head = f"{shape}, width {options.width}, depth {options.depth}, batch {options.batch}"
    rows = []
    for name in CONTENDERS:
        pipes[name].send("stop")
        # A turn's ratio compares steps that were taken one right after the other.
        ratios = [a / b for a, b in zip(seconds[name], seconds["plain"], strict=True)]
        row = {
            "name": name, "seconds": round(statistics.median(seconds[name]), 4),
            "ratio": round(statistics.median(ratios), 2), "fastest": round(min(seconds[name]), 4),
            "peak_mib": round(peak[name]), "peak_ratio": round(peak[name] / peak["plain"], 2),
        }  # fmt: skip
        rows.append(row)
        print(json.dumps(row), flush=True)
    print(f"\n| {head} | seconds | × plain | peak MiB | × plain |")
    print("| --- | ---: | ---: | ---: | ---: |")
    line = "| {name} | {seconds:.3f} | {ratio:.2f} | {peak_mib} | {peak_ratio:.2f} |"
    for r in rows:
        print(line.format(**r))


if __name__ == "__main__":
    main()
