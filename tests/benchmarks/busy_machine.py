"""Seconds of a run whose threads spin, sleep or are one, on an idle and on a busy machine.

    python tests/benchmarks/busy_machine.py --repeat 3 --rounds 10

The study is that of the quick start. The cases take turns, each in a process of its own. The
command line lets waiting threads sleep (`OMP_WAIT_POLICY=passive`); `spin` is OpenMP's default.
The busy machine has one process more for each processor, which never waits. Seconds are medians,
and the last column is the time divided by that of `spin` in the same turn.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

RUN = """
import sys
from cohortium import Federation
from cohortium_dirichlet import Dirichlet
from cohortium_gaussian import Gaussian
from cohortium_secagg import SecAgg

Federation(
    dataset="phantom", partitioner=Dirichlet(alpha=0.5), model="descriptor", trainer="fedsgd",
    privatizer=Gaussian(epsilon=6.0, delta=1.9e-4, clip_norm=7.0),
    aggregator=SecAgg(reconstruction_threshold=4),
    sites=10, rounds=int(sys.argv[1]), seed=1, threads=int(sys.argv[2]),
).run()
"""

CASES: dict[str, tuple[dict[str, str], int]] = {
    "spin": ({}, 0),
    "sleep": ({"OMP_WAIT_POLICY": "passive"}, 0),
    "one thread": ({}, 1),
}
"""Environment and number of threads, by case."""

CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")

BUSY_LOOP = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"


@contextlib.contextmanager
def load(processes: int) -> Iterator[None]:
    """Keep so many processors busy."""
    with contextlib.ExitStack() as stack:
        for _ in range(processes):
            loop = subprocess.Popen([sys.executable, "-c", BUSY_LOOP])
            stack.callback(loop.wait)
            stack.callback(loop.kill)
        yield


def seconds(case: str, rounds: int, folder: Path) -> float:
    """Return the time of one run."""
    variables, threads = CASES[case]
    environ = {name: value for name, value in os.environ.items() if name not in CHOICES}
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", RUN, str(rounds), str(threads)],
        env=environ | variables, cwd=folder, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return time.perf_counter() - began


def main() -> None:
    """Print a row for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    print("| machine | threads | seconds | to spinning |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as place:
        for machine, processes in (("idle", 0), ("busy", os.cpu_count() or 1)):
            found: dict[str, list[float]] = {case: [] for case in CASES}
            with load(processes):
                for _ in range(options.repeat):
                    for case, times in found.items():
                        times.append(seconds(case, options.rounds, Path(place)))
            for case, times in found.items():
                ratios = [a / b for a, b in zip(times, found["spin"], strict=True)]
                print(
                    f"| {machine} | {case} | {statistics.median(times):.1f} | "
                    f"{statistics.median(ratios):.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
