"""SecAgg+ beside Flower's: seconds a site and seconds of the coordinator, contenders in turn.

    python tests/benchmarks/secagg.py --peer "PYTHON flower_secagg.py"

`--peer` is a program that takes `--clients --size --threshold --drop` and prints one line of JSON
with `shares_s` and `masking_s` (seconds a client), `server_s`, and `upload_bytes`.  Without it,
only ours is timed.  Prints one line of JSON a contender and case, then a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import time
from collections import defaultdict
from functools import partial
from typing import Any

import numpy as np
from attrs import frozen

from cohortium.plugin import Ask, Cohort, Member, Randomness, Ring, RingVector, Stream, SumSetting
from cohortium_secagg import SecAgg

RING = Ring(27)
"""Ten updates within ±4 in steps of 2⁻²⁰ add up to less than its half."""


@frozen
class Case:
    """What is summed: `size` values at each of `sites`, the first `lost` gone after sharing."""

    sites: int
    size: int
    threshold: int
    lost: int = 1


CASES = (
    Case(sites=10, size=4_802_120, threshold=6),
    Case(sites=20, size=4_802_120, threshold=11),
    Case(sites=100, size=1_000, threshold=67),
)


def ours(case: Case) -> dict[str, Any]:
    """One attempt in this process, timed party by party."""
    aggregator = SecAgg(threshold=case.threshold, shares=case.sites)
    cohort = Cohort(sites=case.sites, size=case.sites, examples=1, rounds=1)
    setting = SumSetting(session=bytes(16), ring=RING, length=case.size, cohort=cohort)
    coordinator = aggregator.coordinator(setting, Randomness.system())
    sites = [
        aggregator.site(setting, Member(site=k, secret=Randomness.system()))
        for k in range(case.sites)
    ]
    rng = np.random.default_rng(0)
    vectors = [
        RingVector(RING, RING.of(rng.integers(-1000, 1000, case.size))) for _ in range(case.sites)
    ]
    clock, seconds, upload = time.perf_counter, defaultdict[str, float](float), 0
    coordinator.open(0, 0, range(case.sites))
    for stage in ("keys", "shares", "mask", "unmask"):
        start = clock()
        requests = coordinator.requests()
        seconds["server"] += clock() - start
        answering = len(requests.each) - (case.lost if stage == "mask" else 0)
        for site, own in requests.each.items():
            if stage == "mask" and site < case.lost:
                continue
            ask = Ask(round=0, attempt=0, common=requests.common, own=own)
            start = clock()
            reply = sites[site].answer(ask, partial(vectors.__getitem__, site))
            middle = clock()
            coordinator.receive(site, reply)
            seconds[stage] += (middle - start) / answering
            seconds["server"] += clock() - middle
            upload += len(reply) if site == case.sites - 1 else 0
    start = clock()
    if coordinator.requests():
        raise AssertionError("there is more to ask")
    total = coordinator.total()
    seconds["server"] += clock() - start
    expected = sum(vectors[k].words for k in total.contributors)
    if not np.array_equal(RING.signed(total.words), RING.signed(np.asarray(expected))):
        raise AssertionError("the sum is wrong")
    return {
        "name": "cohortium",
        "shares_s": seconds["shares"],
        "masking_s": seconds["mask"],
        "server_s": seconds["server"],
        "upload_bytes": upload,
    }


def cipher(case: Case) -> float:
    """Seconds that the cipher alone takes for the masks of one site."""
    buffer = memoryview(bytearray(1 << 17))
    stream = Stream(bytes(32))
    start = time.perf_counter()
    for _ in range(case.sites * case.size * 4 // len(buffer)):
        stream.fill(buffer)
    return time.perf_counter() - start


def theirs(command: str, case: Case) -> dict[str, Any]:
    """The same case in the peer's own program."""
    options = {"clients": case.sites, "size": case.size, "threshold": case.threshold,
               "drop": case.lost}  # fmt: skip
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    done = subprocess.run([*shlex.split(command), *words], capture_output=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"name": found.get("name", "peer")}


def median(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the numbers of several runs."""
    numbers = [key for key, value in rows[0].items() if isinstance(value, int | float)]
    return rows[0] | {key: statistics.median(row[key] for row in rows) for key in numbers}


def main() -> None:
    """Run every case, the contenders in turn, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", default="", help="the peer's program and its interpreter")
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    table = ["| case | what | cohortium | peer | ratio |", "| --- | --- | --- | --- | --- |"]
    for case in CASES:
        runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for _ in range(arguments.repeat):
            runs["cohortium"].append(ours(case) | {"cipher_s": cipher(case)})
            if arguments.peer:
                runs["peer"].append(theirs(arguments.peer, case))
        best = {name: median(rows) for name, rows in runs.items()}
        for row in best.values():
            print(json.dumps({"sites": case.sites, "size": case.size} | row), flush=True)
        label = f"{case.sites} sites, {case.size:,} values, t = {case.threshold}"
        for what in ("shares_s", "masking_s", "server_s", "upload_bytes"):
            own, other = best["cohortium"][what], best.get("peer", {}).get(what)
            ratio = "–" if other is None else f"{other / own:.1f}×"
            shown = "–" if other is None else f"{other:.3g}"
            table.append(f"| {label} | {what} | {own:.3g} | {shown} | {ratio} |")
        table.append(f"| {label} | cipher alone, s | {best['cohortium']['cipher_s']:.3g} | – | – |")
    print("\n".join(table))


if __name__ == "__main__":
    main()
