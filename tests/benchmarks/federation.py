"""A whole federated run beside a hand-written loop and other frameworks, contenders in turn.

    python tests/benchmarks/federation.py --repeat 5 --peer "Flower=PYTHON flower_simulation.py"

The work: a small CNN on random 3x28x28 images; a client's turn is `--steps` steps of SGD, batch 32,
from the global weights; a round takes the mean of what all clients have come to.  Every contender
runs in a process of its own, with one thread of torch.  Its seconds leave out the first round
(imports, warm-up) and are scaled up to all of them; processor seconds are its process' own.

With `--by-round`, our own contenders run side by side, and wait for each other: one round of the
first, one of the second, and so on.  So a machine that becomes slower meanwhile is slower for all.
Then the ratios are of processor seconds, each to the loop's round just before.

`--peer "NAME=COMMAND"` is a program that takes `--clients --rounds --steps` and prints one line of
JSON with such `seconds`.  Seconds are medians over turns, ratios medians of the ratios to the loop
of the same turn.  Prints one line of JSON a turn, then a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from attrs import define, field, frozen
from torch import nn

from cohortium import Federation
from cohortium.plugin import Engine, Event, Examples, Multiclass, RoundCompleted, Splits
from cohortium_fedavg import FedAvg
from cohortium_inline import Inline
from cohortium_module import Module
from cohortium_none import NoPrivacy
from cohortium_plain import Plain
from cohortium_ray import Ray
from cohortium_secagg import SecAgg

BATCH, RATE, CLASSES = 32, 0.1, 8

Figures: TypeAlias = dict[str, float]
"""What was measured of one contender in one turn."""


@frozen
class Case:
    """How much work there is."""

    clients: int
    rounds: int
    steps: int

    @property
    def options(self) -> list[str]:
        """For a program that does it."""
        return [f"--clients={self.clients}", f"--rounds={self.rounds}", f"--steps={self.steps}"]


def network() -> nn.Module:
    """What is trained: 5,608 parameters."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.GroupNorm(4, 16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1), nn.GroupNorm(4, 32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES),
    )  # fmt: skip


@frozen
class RandomImages:
    """Noise with labels: what is learnt from it does not matter."""

    examples: int

    def load(self) -> Splits:
        """Draw it."""
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (self.examples, 3, 28, 28), np.uint8)
        labels = rng.integers(0, CLASSES, self.examples)
        return Splits(
            name="noise",
            task=Multiclass(tuple(map(str, range(CLASSES)))),
            train=Examples(images, labels),
        )


@define
class Clock:
    """Notes when rounds end; an observer, or called by hand."""

    ticks: list[tuple[float, float]] = field(factory=list)

    def start_run(self) -> Callable[[Event], None]:
        """Listen to a run."""
        return lambda event: self.tick() if isinstance(event, RoundCompleted) else None

    def tick(self) -> None:
        """A round is over."""
        self.ticks.append((time.perf_counter(), time.process_time()))

    def figures(self) -> Figures:
        """Seconds of all rounds, as if the first had taken as long as the others."""
        scale = len(self.ticks) / (len(self.ticks) - 1)
        wall, cpu = (
            (last - first) * scale
            for first, last in zip(self.ticks[0], self.ticks[-1], strict=True)
        )
        return {"seconds": wall, "cpu": cpu}


@define
class PacedClock(Clock):
    """Prints the processor seconds of each round, and begins the next one at a line of input."""

    _begun: float | None = None

    def tick(self) -> None:
        """A round is over."""
        now = time.process_time()
        print("null" if self._begun is None else now - self._begun, flush=True)
        sys.stdin.readline()
        self._begun = time.process_time()


def loop(case: Case, clock: Clock) -> None:
    """The limit: no framework, no privacy, no message."""
    torch.manual_seed(0)
    net = network()
    splits = RandomImages(case.clients * case.steps * BATCH).load()
    images = torch.from_numpy(splits.train.images).float().div_(255).sub_(0.5).div_(0.5)
    labels = torch.from_numpy(splits.train.labels)
    shape = (case.clients, case.steps, BATCH)
    images, labels = images.view(*shape, 3, 28, 28), labels.view(shape)
    weights = {k: v.clone() for k, v in net.state_dict().items()}
    for _ in range(case.rounds):
        total = {k: torch.zeros_like(v) for k, v in weights.items()}
        for client in range(case.clients):
            net.load_state_dict(weights)
            optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
            for step in range(case.steps):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(net(images[client, step]), labels[client, step])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            for k, v in net.state_dict().items():
                total[k] += v
        weights = {k: v / case.clients for k, v in total.items()}
        clock.tick()


def ours(
    case: Case, clock: Clock, aggregator: Plain | SecAgg, engine: Engine, **terms: Any
) -> None:
    """The same as a study."""
    Federation(
        dataset=RandomImages(case.clients * case.steps * BATCH),
        partitioner="iid",
        model=Module(module=f"{Path(__file__).stem}:network"),
        trainer=FedAvg(batch_size=BATCH, learning_rate=RATE),
        privatizer=NoPrivacy(),
        aggregator=aggregator,
        engine=engine,
        sites=case.clients,
        rounds=case.rounds,
        threads=1,
        **terms,
    ).run(observers=[clock])


CONTENDERS: dict[str, Callable[[Case, Clock], None]] = {
    "hand-written loop": loop,
    "inline, plain": lambda case, clock: ours(case, clock, Plain(), Inline()),
    "inline, secagg": lambda case, clock: ours(case, clock, SecAgg(), Inline()),
    "inline, secagg, active": lambda case, clock: ours(
        case, clock, SecAgg(), Inline(), adversary="active"
    ),
    "ray, plain": lambda case, clock: ours(case, clock, Plain(), Ray()),
    "ray, secagg": lambda case, clock: ours(case, clock, SecAgg(), Ray()),
    "ray, secagg, active": lambda case, clock: ours(
        case, clock, SecAgg(), Ray(), adversary="active"
    ),
}
"""The first is what the others are compared with."""


def measured(name: str, case: Case, *, by_round: bool) -> None:
    """Run one contender in this process, and print its figures."""
    torch.set_num_threads(1)
    if by_round:
        CONTENDERS[name](case, PacedClock())
        return
    clock = Clock()
    CONTENDERS[name](case, clock)
    print(json.dumps(clock.figures()))


def run(command: list[str]) -> Figures:
    """The figures that a program prints in its last line."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"{shlex.join(command)} failed:\n{done.stderr.decode()}")
    found: Figures = json.loads(done.stdout.splitlines()[-1])
    return found


def by_round(commands: dict[str, list[str]], case: Case) -> str:
    """Run a round of each contender in turn, and return a table of processor seconds."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = {
        name: subprocess.Popen(
            [*command, "--by-round"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for name, command in commands.items()
    }
    rounds: dict[str, list[float]] = {name: [] for name in running}
    for number in range(case.rounds):
        for name, process in running.items():
            assert process.stdin is not None
            assert process.stdout is not None
            if number:
                process.stdin.write("\n")
                process.stdin.flush()
            seconds = json.loads(process.stdout.readline())
            if number > 1:  # The first two warm up.
                rounds[name].append(seconds)
    for process in running.values():
        process.communicate("\n")
    first = next(iter(rounds.values()))
    lines = [
        "| contender | ms a round (median) | × loop (median) | middle half | × loop (sums) |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, found in rounds.items():
        ratios = [mine / theirs for mine, theirs in zip(found, first, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        lines.append(
            f"| {name} | {1e3 * statistics.median(found):.0f} | {middle:.2f} "
            f"| {low:.2f} to {high:.2f} | {sum(found) / sum(first):.2f} |"
        )
    return "\n".join(lines)


def table(turns: list[dict[str, Figures]]) -> str:
    """Medians."""

    def median(name: str, what: str, form: str) -> str:
        values = [turn[name][what] for turn in turns if what in turn[name]]
        return format(statistics.median(values), form) if values else ""

    def ratio(name: str, what: str) -> str:
        first = next(iter(CONTENDERS))
        values = [
            turn[name][what] / turn[first][what]
            for turn in turns
            if first in turn and what in turn[name]
        ]
        return format(statistics.median(values), ".2f") if values else ""

    lines = [
        "| contender | seconds | × loop | processor, s | × loop |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name in turns[0]:
        cells = [
            name, median(name, "seconds", ".3g"), ratio(name, "seconds"),
            median(name, "cpu", ".3g"), ratio(name, "cpu"),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the contenders in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--peer", action="append", default=[], help="NAME=COMMAND")
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--measure", choices=list(CONTENDERS), help="run this one, here")
    parser.add_argument("--by-round", action="store_true", help="contenders alternate by rounds")
    arguments = parser.parse_args()
    case = Case(arguments.clients, arguments.rounds, arguments.steps)
    if arguments.measure:
        measured(arguments.measure, case, by_round=arguments.by_round)
        return
    here = [sys.executable, __file__, *case.options, "--measure"]
    commands = {name: [*here, name] for name in arguments.only}
    if arguments.by_round:
        if arguments.peer or any(name.startswith("ray") for name in commands):
            parser.error("--by-round is for contenders that run in one process")
        print(by_round(commands, case))
        return
    for peer in arguments.peer:
        name, _, command = peer.partition("=")
        commands[name] = [*shlex.split(command), *case.options]
    turns = []
    for _ in range(arguments.repeat):
        turns.append({name: run(command) for name, command in commands.items()})
        print(json.dumps({"load": os.getloadavg()[0]} | turns[-1]), flush=True)
    print(table(turns))


if __name__ == "__main__":
    main()
