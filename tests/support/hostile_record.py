"""A run's record in which every word wants to be more than a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>{{7*7}}\u202e&amp;`"
"""What a page must show and never do."""

SPARED = frozenset({"event", "unit", "adjacency", "against", "weights_sha256"})
"""Keys whose words must be among a few, or the record is refused."""


def poisoned(value: Any) -> Any:
    """`value` with `HOSTILE` in place of every string that may be any."""
    if isinstance(value, dict):
        return {key: inner if key in SPARED else poisoned(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [poisoned(inner) for inner in value]
    return HOSTILE if isinstance(value, str) else value


def poison(folder: Path) -> None:
    """Put `HOSTILE` wherever the record in `folder` has words."""
    path = folder / "events.jsonl"
    lines = [poisoned(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = folder / "result.json"
    path.write_text(json.dumps(poisoned(json.loads(path.read_text()))))
    path = folder / "study.toml"
    path.write_text(path.read_text().replace('"fedavg"', json.dumps(HOSTILE)))
