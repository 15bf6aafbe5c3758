"""SecAgg+ beside Flower's: seconds of a site and of the coordinator, contenders in turn.

    python tests/benchmarks/secagg.py --peer "PYTHON flower_secagg.py"

`--peer` is a program that takes `--clients --size --threshold --drop` and prints one line of JSON
with `shares_s` and `masking_s` (seconds a client), `server_s`, and `upload_bytes`.  Without it,
only ours is timed.  Every turn runs ours with each of `--threads`, then the cipher alone, then the
peer.  Seconds are medians over turns, ratios are medians of the ratios of one turn.  Prints one
line of JSON a turn, then a table in Markdown.

On a machine that does other work meanwhile, `--cpu --threads 1` counts processor time instead; the
peer, `PYTHON PROGRAM`, is then run with `time.perf_counter` replaced.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
from attrs import frozen

from cohortium.plugin import (
    AggregationConfig,
    FederationSpec,
    FixedPoint,
    KeyStream,
    Randomness,
    Ring,
    RingVector,
    SiteContext,
    SiteRequest,
)
from cohortium_secagg import SecAgg

CODE = FixedPoint(Ring(27), step=2.0**-20)
"""Ten updates within ±4 in steps of 2⁻²⁰ add up to less than its half."""

Turn: TypeAlias = dict[str, float]
"""What was measured in one turn."""


@frozen
class Case:
    """What is summed: `size` values at each of `sites`; the first `lost` share, and are gone."""

    sites: int
    size: int
    threshold: int
    lost: int = 1

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.sites} sites, {self.size:,} values, t = {self.threshold}"


COUNTING_CPU = """
import runpy, sys, time
time.perf_counter = time.process_time
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs another program, and has its seconds be those of the processor."""

Clock: TypeAlias = Callable[[], float]

CASES = (
    Case(sites=10, size=4_802_120, threshold=6),
    Case(sites=20, size=4_802_120, threshold=11),
    Case(sites=100, size=1_000, threshold=67),
)


class Updates:
    """A site's update, and how long it took to encode."""

    def __init__(self, case: Case, clock: Clock) -> None:
        rng = np.random.default_rng(0)
        self.values = [
            (rng.standard_normal(case.size) * 0.05).astype(np.float32) for _ in range(case.sites)
        ]
        self.clock, self.seconds = clock, 0.0

    def vector(self, site: int) -> Callable[[], RingVector]:
        def release() -> RingVector:
            start = self.clock()
            words = CODE.encode(self.values[site])
            self.seconds += self.clock() - start
            return RingVector(CODE.ring, words)

        return release


def ours(case: Case, threads: int, clock: Clock) -> Turn:
    """One attempt in this process, timed party by party."""
    aggregator = SecAgg(
        reconstruction_threshold=case.threshold, num_shares=case.sites, threads=threads
    )
    federation_spec = FederationSpec(sites=case.sites, cohort_size=case.sites, examples=1, rounds=1)
    config = AggregationConfig(
        session=bytes(16), ring=CODE.ring, length=case.size, federation_spec=federation_spec
    )
    coordinator = aggregator.coordinator_session(config, Randomness.system())
    sites = [
        aggregator.site_session(config, SiteContext(site=k, secret=Randomness.system()))
        for k in range(case.sites)
    ]
    updates = Updates(case, clock)
    seconds, upload = defaultdict[str, float](float), 0
    coordinator.begin_attempt(0, 0, range(case.sites))
    for stage in ("keys", "shares", "masking", "unmasking"):
        start = clock()
        requests = coordinator.next_requests()
        seconds["coordinator"] += clock() - start
        for site, own in requests.per_site.items():
            if stage == "masking" and site < case.lost:
                continue
            ask = SiteRequest(round=0, attempt=0, broadcast=requests.broadcast, own=own)
            start = clock()
            reply = sites[site].handle(ask, updates.vector(site))
            middle = clock()
            coordinator.receive(site, reply)
            seconds["coordinator"] += clock() - middle
            seconds[stage] += middle - start
            upload += len(reply) if site == case.sites - 1 else 0
    start = clock()
    if coordinator.next_requests():
        raise AssertionError("there is more to ask")
    total = coordinator.sum()
    middle = clock()
    seconds["coordinator"] += middle - start
    decoded = CODE.decode(total.words)
    decoding = clock() - middle
    left = case.sites - case.lost
    check(decoded, updates, total.contributors)
    return {
        "shares": seconds["shares"] / case.sites,
        "masking": (seconds["masking"] - updates.seconds) / left,
        "encoding": updates.seconds / left,
        "coordinator": seconds["coordinator"],
        "decoding": decoding,
        "upload": upload,
    }


def check(decoded: Any, updates: Updates, contributors: tuple[int, ...]) -> None:
    """Raise if the sum is off by more than rounding."""
    expected = np.sum([updates.values[k].astype(float) for k in contributors], axis=0)
    if np.abs(decoded - expected).max() > len(contributors) * CODE.step:
        raise AssertionError("the sum is wrong")


def cipher(case: Case, threads: int, clock: Clock) -> float:
    """Seconds that the cipher alone takes for the masks of one site, on as many threads."""
    count = case.sites * case.size * CODE.ring.dtype.itemsize // threads

    def work(_number: int) -> None:
        buffer, stream = memoryview(bytearray(1 << 17)), KeyStream(bytes(32))
        for start in range(0, count, len(buffer)):
            stream.fill(buffer[: count - start])

    start = clock()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    return clock() - start


def theirs(command: str, case: Case, clock: Clock) -> Turn:
    """The same case in the peer's own program."""
    options = {"clients": case.sites, "size": case.size, "threshold": case.threshold,
               "drop": case.lost}  # fmt: skip
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    python, *program = shlex.split(command)
    how = [] if clock is time.perf_counter else ["-c", COUNTING_CPU]
    done = subprocess.run([python, *how, *program, *words], capture_output=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return {
        "shares": found["shares_s"],
        "masking": found["masking_s"],
        "coordinator": found["server_s"],
        "upload": found["upload_bytes"],
    }


def turn(case: Case, threads: list[int], peer: str, clock: Clock) -> Turn:
    """All contenders once."""
    found: Turn = {}
    for count in threads:
        found |= {f"{what} {count}": value for what, value in ours(case, count, clock).items()}
    for count in threads:
        found[f"cipher {count}"] = cipher(case, count, clock)
    if peer:
        found |= {f"{what} peer": value for what, value in theirs(peer, case, clock).items()}
    return found


def rows(case: Case, turns: list[Turn], threads: list[int]) -> list[str]:
    """The lines of the table."""
    title = iter([case.title])

    def row(what: str, parts: tuple[str, ...], rival: str, form: str = ".3g") -> str:
        sums = [sum(turn[part] for part in parts) for turn in turns]
        cells = [next(title, ""), what, format(statistics.median(sums), form), "", ""]
        if rival in turns[0]:
            rivals = [turn[rival] for turn in turns]
            ratios = [other / own for other, own in zip(rivals, sums, strict=True)]
            cells[3] = format(statistics.median(rivals), form)
            cells[4] = f"{format_ratio(statistics.median(ratios))}×"
        return f"| {' | '.join(cells)} |"

    lines = [row("shares, s a site", (f"shares {threads[0]}",), "shares peer")]
    for n in threads:
        on = f"{n} thread{'s' * (n > 1)}"
        times = statistics.median(turn[f"masking {n}"] / turn[f"cipher {n}"] for turn in turns)
        lines += [
            row(f"masking, s a site, {on}", (f"masking {n}",), "masking peer"),
            row(f"masking and encoding, {on}", (f"masking {n}", f"encoding {n}"), "masking peer"),
            row(f"the cipher alone, s, {on} (masking: {times:.2f}×)", (f"cipher {n}",), ""),
            row(f"coordinator, s, {on}", (f"coordinator {n}",), "coordinator peer"),
            row(
                f"coordinator and decoding, {on}",
                (f"coordinator {n}", f"decoding {n}"),
                "coordinator peer",
            ),
        ]
    return [*lines, row("bytes up a site", (f"upload {threads[0]}",), "upload peer", ",.0f")]


def format_ratio(ratio: float) -> str:
    """Two digits, or all before the point."""
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}"


def main() -> None:
    """Run every case, the contenders in turn, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", default="", help="the peer's program and its interpreter")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cases", type=int, nargs="+", default=range(len(CASES)))
    parser.add_argument("--cpu", action="store_true", help="count processor time")
    arguments = parser.parse_args()
    clock = time.process_time if arguments.cpu else time.perf_counter
    table = ["| case | what | cohortium | peer | ratio |", "| --- | --- | ---: | ---: | ---: |"]
    for number in arguments.cases:
        case, turns = CASES[number], []
        for _ in range(arguments.repeat):
            turns.append(turn(case, arguments.threads, arguments.peer, clock))
            load = os.getloadavg()[0]
            print(json.dumps({"sites": case.sites, "load": load} | turns[-1]), flush=True)
        table += rows(case, turns, arguments.threads)
    print("\n".join(table))


if __name__ == "__main__":
    main()
