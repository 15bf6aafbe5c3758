"""Seconds from the start of a process to its first answer.

    python tests/benchmarks/startup.py --repeat 5

The cases take turns, each in a process of its own, and the seconds are medians.
`import torch` is the floor of every command that builds a network: the last column is the time
divided by that of the floor in the same turn.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REFUSED = """
[federation]
sites = 3

[aggregator]
name = "secagg"
reconstruction_threshold = 4
"""

PLAIN = """
[privatizer]
name = "none"
"""

FIRST_ROUND = """
import sys
from cohortium import Federation


asked = []

def stop() -> bool:  # is asked before every attempt
    asked.append(True)
    return True

try:
    Federation.read(sys.argv[1]).run(stop=stop)
except Exception as error:
    assert asked, error
"""


def cases(folder: Path) -> dict[str, list[str]]:
    """Return the commands by name.  Their studies are written to `folder`."""
    for name, text in (("refused", REFUSED), ("plain", PLAIN), ("private", "")):
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "cohortium"]
    first = [sys.executable, "-c", FIRST_ROUND]
    return {
        "import torch": [sys.executable, "-c", "import torch"],
        "--help": [*command, "--help"],
        "--version": [*command, "--version"],
        "a refusal by the study": [*command, "run", str(folder / "refused.toml")],
        "plan of the quick start": [*command, "plan"],
        "first round, plain": [*first, str(folder / "plain.toml")],
        "first round, private": [*first, str(folder / "private.toml")],
    }


def seconds(command: list[str], folder: Path, *, is_refused: bool) -> float:
    """Return the seconds that a command takes, and check how it ended."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    taken = time.perf_counter() - start
    if (done.returncode != 0) is not is_refused:
        raise SystemExit(f"{command} ended with {done.returncode}: {done.stderr[-500:]}")
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands = cases(folder)
        turns = [
            {
                case: seconds(command, folder, is_refused="refusal" in case)
                for case, command in commands.items()
            }
            for _ in range(repeat)
        ]
    print("| case | seconds | × import torch |\n| --- | ---: | ---: |")
    for case in commands:
        taken = statistics.median(turn[case] for turn in turns)
        ratio = statistics.median(turn[case] / turn["import torch"] for turn in turns)
        print(f"| {case} | {taken:.2f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
