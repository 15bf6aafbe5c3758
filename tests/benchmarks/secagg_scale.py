"""SecAgg+ over many sites, and over long vectors: seconds, bytes and memory of either party.

    python tests/benchmarks/secagg_scale.py --case sites
    python tests/benchmarks/secagg_scale.py --case values

All parties are in this process.  `sites` sums 10,000 values of 100 to 1,000 sites, 5 % of which
collude and 5 % are lost, a quarter of those at each stage; neighbours and threshold are calculated.
`values` sums up to 100 million values of five sites, one lost after sharing.
Seconds are the processor's, over all threads.  Memory is what Python and numpy allocate beyond what
a party is given; tracing it slows the run, so it is taken from a second one.  Prints a table in
Markdown.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
import tracemalloc
from collections import defaultdict
from functools import partial
from typing import Any

import numpy as np
from attrs import frozen

from cohortium.plugin import (
    AggregationConfig,
    FederationSpec,
    Randomness,
    Ring,
    RingVector,
    SiteContext,
    SiteRequest,
)
from cohortium_secagg import SecAgg

RING = Ring(27)
"""As in the other benchmark."""

VECTOR, STAGES = 2, 4


@frozen
class Case:
    """What is summed, and who is lost from which stage on."""

    aggregator: SecAgg
    sites: int
    size: int
    colluding: int = 0
    lost: tuple[tuple[int, int], ...] = ()


def _many(sites: int) -> Case:
    """One in twenty colludes, and one in twenty is lost."""
    lost = tuple((site, place % STAGES) for place, site in enumerate(range(0, sites, 20)))
    return Case(SecAgg(max_dropout_rate=0.05), sites, 10_000, colluding=sites // 20, lost=lost)


CASES = {
    "sites": [_many(sites) for sites in (100, 200, 500, 1_000)],
    "values": [
        Case(SecAgg(), 5, size, lost=((2, VECTOR),))
        for size in (1_000_000, 10_000_000, 100_000_000)
    ],
}


class Meter:
    """Adds up what is spent on each party."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.seconds: dict[Any, float] = defaultdict(float)
        self.peak: dict[Any, int] = defaultdict(int)
        self._held: dict[Any, int] = defaultdict(int)

    def __call__(self, party: object, work: Any) -> Any:
        """What `work` returns, its time and its memory put down to `party`."""
        traced = tracemalloc.is_tracing()
        if traced:
            tracemalloc.reset_peak()
        before, start = tracemalloc.get_traced_memory()[0], time.process_time()
        result = work()
        self.seconds[party] += time.process_time() - start
        if traced:
            after, peak = tracemalloc.get_traced_memory()
            self.peak[party] = max(self.peak[party], self._held[party] + peak - before)
            # A reply is handed on; the rest stays with the party.
            given = len(result) if isinstance(result, bytes) else 0
            self._held[party] += after - before - given
        return result


def attempt(case: Case, meter: Meter) -> dict[int, int]:
    """One attempt; the bytes that each site sent.  The sum is checked."""
    federation_spec = FederationSpec(
        sites=case.sites, cohort_size=case.sites, examples=1, rounds=1, max_colluding=case.colluding
    )
    config = AggregationConfig(
        session=bytes(16), ring=RING, length=case.size, federation_spec=federation_spec
    )
    coordinator = case.aggregator.coordinator_session(config, Randomness.system())
    sites = {
        site: case.aggregator.site_session(
            config, SiteContext(site=site, secret=Randomness.system())
        )
        for site in range(case.sites)
    }
    lost, upload = dict(case.lost), defaultdict[int, int](int)
    coordinator.begin_attempt(0, 0, tuple(sites))
    for stage in range(STAGES):
        requests = meter("coordinator", coordinator.next_requests)
        for site, own in requests.per_site.items():
            if stage < lost.get(site, STAGES):
                ask = SiteRequest(round=0, attempt=0, broadcast=requests.broadcast, own=own)
                # Made beforehand, so that it does not count as the site's own.
                vector = release(case, site) if stage == VECTOR else None
                answer = partial(sites[site].handle, ask, partial(_given, vector))
                reply = meter(site, answer)
                upload[site] += len(reply)
                del answer, vector
                meter("coordinator", partial(coordinator.receive, site, reply))
                del reply
    if meter("coordinator", coordinator.next_requests):
        raise AssertionError("there is more to ask")
    check(case, coordinator.sum())
    return upload


def _given(vector: RingVector | None) -> RingVector:
    assert vector is not None
    return vector


def release(case: Case, site: int) -> RingVector:
    """A site's vector."""
    integers = np.random.default_rng(site).integers(-1000, 1000, case.size, np.int32)
    return RingVector(RING, integers.view(RING.dtype))


def check(case: Case, total: Any) -> None:
    """Take the contributions off the total: nothing must be left."""
    for site in total.contributors:
        np.subtract(total.words, release(case, site).words, out=total.words)
    np.bitwise_and(total.words, RING.dtype.type((1 << RING.bits) - 1), out=total.words)
    if total.words.any() or len(total.contributors) < case.sites - len(case.lost):
        raise AssertionError("the sum is wrong")


def row(case: Case) -> str:
    """A line of the table."""
    timed, traced = Meter(), Meter()
    upload = attempt(case, timed)
    tracemalloc.start()
    attempt(case, traced)
    tracemalloc.stop()
    whole = [site for site in range(case.sites) if site not in dict(case.lost)]
    federation_spec = FederationSpec(
        sites=case.sites, cohort_size=case.sites, examples=1, rounds=1, max_colluding=case.colluding
    )
    confidentiality = case.aggregator.confidentiality(federation_spec)
    return " | ".join(
        [
            f"| {case.sites:,}",
            f"{case.size:,}",
            f"{confidentiality.reconstruction_threshold} of {confidentiality.shares}",
            f"{statistics.mean(timed.seconds[site] for site in whole):.3g}",
            f"{timed.seconds['coordinator']:.3g}",
            f"{max(upload.values()) / 1e3:,.1f}",
            f"{max(traced.peak[site] for site in whole) / 1e6:,.3g}",
            f"{traced.peak['coordinator'] / 1e6:,.3g} |",
        ]
    )


def main() -> None:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=sorted(CASES), required=True)
    print("| sites | values | shares | s a site | coordinator, s | KB up | site, MB | coord., MB |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for case in CASES[parser.parse_args().case]:
        print(row(case), flush=True)
    print(f"peak of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
