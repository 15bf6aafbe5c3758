"""What an exchange over Flower costs: five hospitals on loopback with TLS, that say bytes back.

    python tests/benchmarks/flower_exchange.py [SITES] [ROUNDS]

Nothing is trained: a site's time is that of its process' answer.  The seconds are those of this
machine, which runs all hospitals and the SuperLink itself.
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
    """Run a study of rounds without work, and print what its exchanges took."""
    sites, rounds = (int(n) for n in (*sys.argv[1:3], "5", "6")[:2])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "deployment"
        study = tiny_federation(
            sites=sites, rounds=rounds, reply_timeout=300.0, insecure_seeded_secrets=True, threads=1
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
    taken = [
        stage["seconds"]
        for event in events
        if event["event"] == "RoundCompleted"
        for stage in event["stages"]
    ]
    middle = statistics.median(taken)
    print(f"{sites} sites, {len(taken)} exchanges: median {middle:.1f} s,", end=" ")
    print(f"from {min(taken):.1f} to {max(taken):.1f} s")


if __name__ == "__main__":
    main()
