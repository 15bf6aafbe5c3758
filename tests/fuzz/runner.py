"""A fuzzer over everything that reads bytes from others.

    python -m tests.fuzz.runner --cases 1000000
    python -m tests.fuzz.runner --target study --first 1234 --cases 1

Every case is made from the seed, the target's name and the case's number, so that one can be had
again.  A reader may take what it is given, or refuse it with an error of its own; any other
exception, a value that does not stand a second reading, or memory out of proportion is a defect.
Prints a table, and every defect as it is found; the exit code says whether there was one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from random import Random

from attrs import define, field, frozen

from tests.fuzz.targets import Target, targets

MEASURED = 16
"""One case in so many has its memory measured, which is slow."""


@frozen
class Defect:
    """A case that went wrong."""

    target: str
    case: int
    what: str


@define
class Tally:
    """What became of a target's cases."""

    taken: int = 0
    refused: int = 0
    defects: list[Defect] = field(factory=list)


def fuzz(
    over: Iterable[Target],
    *,
    cases: int,
    seed: int = 1,
    first: int = 0,
    found: Callable[[Defect], None] = lambda _: None,
) -> dict[str, Tally]:
    """Try `cases` cases, dealt to the targets by their weights.

    Args:
        over: What is tried.
        cases: How many in all.
        seed: Of all of them.
        first: The number of the first case of each target.
        found: Told of each defect.
    """
    turns = [target for target in over for _ in range(target.weight)]
    tallies = {target.name: Tally() for target in turns}
    numbers = dict.fromkeys(tallies, first)
    for target in {target.name: target for target in turns}.values():
        _try(target, Random(f"{seed} {target.name} warm"))  # what is imported late is no memory
    for turn in range(cases):
        target = turns[turn % len(turns)]
        number, tally = numbers[target.name], tallies[target.name]
        numbers[target.name] += 1
        rng = Random(f"{seed} {target.name} {number}")
        outcome = _measured(target, rng) if number % MEASURED == 0 else _try(target, rng)
        if isinstance(outcome, str):
            tally.defects.append(Defect(target.name, number, outcome))
            found(tally.defects[-1])
        elif outcome:
            tally.taken += 1
        else:
            tally.refused += 1
    return tallies


def _try(target: Target, rng: Random) -> bool | str:
    """Whether the bytes were taken, or what went wrong."""
    try:
        target.case(rng)
    except target.errors:
        return False
    except Exception:  # noqa: BLE001 - any other is what is looked for
        return traceback.format_exc()
    return True


def _measured(target: Target, rng: Random) -> bool | str:
    tracemalloc.start()
    try:
        outcome = _try(target, rng)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    if peak > target.memory and not isinstance(outcome, str):
        return f"it held {peak} bytes, and may hold {target.memory}."
    return outcome


def table(tallies: dict[str, Tally]) -> str:
    """The tallies in Markdown."""
    lines = [
        "| reader | cases | taken | refused | defects |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, t in tallies.items():
        counts = (t.taken + t.refused + len(t.defects), t.taken, t.refused, len(t.defects))
        lines.append(f"| {name} | {' | '.join(f'{count:,}' for count in counts)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--cases", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--target", help="only those whose name has this in it")
    chosen = parser.parse_args(arguments)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        over = [t for t in targets(Path(folder)) if (chosen.target or "") in t.name]
        tallies = fuzz(
            over, cases=chosen.cases, seed=chosen.seed, first=chosen.first, found=_print_defect
        )
    print(table(tallies))
    defects = sum(len(tally.defects) for tally in tallies.values())
    seconds = time.perf_counter() - start
    print(f"{chosen.cases:,} cases in {seconds:,.0f} s, seed {chosen.seed}: {defects} defects.")
    return 1 if defects else 0


def _print_defect(defect: Defect) -> None:
    print(f"--- {defect.target}, case {defect.case}:\n{defect.what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
