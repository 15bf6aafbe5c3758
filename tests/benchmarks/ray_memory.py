"""Memory of a run with many sites on the engine `ray`: the driver's, the workers', the store's.

    python tests/benchmarks/ray_memory.py --sites 200 --rounds 5 --parameters 1000000

Prints a row of a table in Markdown after every round.  Memory is what processes hold resident, less
what they share (the object store is shared); the largest of the workers is shown.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from attrs import define
from federation import RATE, RandomImages

from cohortium import Federation
from cohortium.plugin import Event, RoundCompleted
from cohortium_fedavg import FedAvg
from cohortium_module import Module
from cohortium_ray import Ray
from cohortium_secagg import SecAgg

FEW = 8
"""Images at a site."""


def resident(process: Path) -> float:
    """MB that a process holds for itself."""
    pages = (process / "statm").read_text().split()
    return (int(pages[1]) - int(pages[2])) * 4096 / 1e6


def workers() -> list[float]:
    """MB of each worker that has sites."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes().startswith(b"ray::Worker"):
                found.append(resident(process))
        except OSError:  # it has ended meanwhile
            continue
    return found


def stored() -> float:
    """MB in the object store."""
    import ray

    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return (total["object_store_memory"] - free.get("object_store_memory", 0.0)) / 1e6


@define
class Meter:
    """Prints a row after every round."""

    def start_run(self) -> Callable[[Event], None]:
        """Listen to a run."""

        def listen(event: Event) -> None:
            if isinstance(event, RoundCompleted):
                cells = (resident(Path("/proc/self")), max(workers()), stored())
                row = " | ".join(f"{cell:,.0f}" for cell in cells)
                print(f"| {event.round + 1} | {row} | {len(event.dropped)} |", flush=True)

        return listen


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parameters", type=int, default=1_000_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| round | driver, MB | largest worker, MB | object store, MB | lost |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    Federation(
        dataset=RandomImages(arguments.sites * FEW),
        model=Module(
            module="federation_scale:layers", arguments={"parameters": arguments.parameters}
        ),
        trainer=FedAvg(batch_size=FEW, learning_rate=RATE / 10),
        privatizer="none",
        aggregator=SecAgg(),
        engine=Ray(),
        sites=arguments.sites,
        rounds=arguments.rounds,
        threads=1,
    ).run(observers=[Meter()])


if __name__ == "__main__":
    main()
