"""What an exchange over Flower costs: five hospitals on loopback with TLS, that say bytes back.

    python tests/benchmarks/flower_exchange.py [SITES] [ROUNDS] [AGGREGATOR]

Hardly anything is trained: a site's time is that of its process' answer.  The seconds are those of
this machine, which runs all hospitals and the SuperLink itself.  Another tree of the source is
measured with its own `core` and `plugins` as PYTHONPATH.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from cohortium.deployment import rehearsal
from tests.support.federations import tiny_federation
from tests.support.flower_processes import deployed


def main() -> None:
    """Run a study of rounds almost without work, and print what its exchanges took."""
    given = sys.argv[1:]
    sites, rounds, aggregator = (given + ["5", "6", "plain"][len(given) :])[:3]
    print(measured(int(sites), int(rounds), aggregator))


def measured(sites: int, rounds: int, aggregator: str) -> str:
    """Run a study, and say what its exchanges and its rounds took."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "deployment"
        study = tiny_federation(
            sites=sites,
            rounds=rounds,
            aggregator=aggregator,
            reply_timeout=300.0,
            insecure_seeded_secrets=True,
            threads=1,
        )
        rehearsal.write_rehearsal(study.prepare(), folder)
        with deployed(folder, sites=sites) as deployment:
            deployment.start_all()
            deployment.run().wait(1800)
            log = deployment.log("lead")
        record = folder / "run" / "events.jsonl"
        if not record.exists():
            sys.exit(log[-3000:])
        events = [json.loads(line) for line in record.read_text().splitlines()]
    by_round = [
        [stage["seconds"] for stage in event["stages"]]
        for event in events
        if event["event"] == "RoundCompleted"
    ]
    taken = [seconds for round_ in by_round for seconds in round_]
    return (
        f"{sites} sites, {rounds} rounds, {len(taken)} exchanges: median "
        f"{statistics.median(taken):.1f} s, from {min(taken):.1f} to {max(taken):.1f} s; rounds of "
        f"{', '.join(f'{sum(round_):.1f}' for round_ in by_round)} s, {sum(taken):.0f} s together"
    )


if __name__ == "__main__":
    main()
