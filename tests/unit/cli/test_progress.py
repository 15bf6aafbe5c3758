"""Progress of a long command, in a log and on a terminal."""

from __future__ import annotations

from pathlib import Path

from cohortium.cli._progress import Progress
from tests.support.command_line import cohortium
from tests.unit.cli.test_attack import TINY


def test_log_gets_new_parts_at_once_and_few_other_lines() -> None:
    shown: list[str] = []
    clock = [0.0]
    progress = Progress("attack", shown.append, 10.0, lambda: clock[0])
    for share in range(101):  # one part of 100 seconds
        clock[0] = float(share)
        progress.tell("the exact sum, search", share / 100)
    progress.tell("the end\x1b[2J", 0.0)
    assert shown[0] == "attack: the exact sum, search, 0%"
    assert shown[1] == "attack: the exact sum, search, 10%, about 0:01:30 left"
    assert len(shown) == 12
    assert shown[-1].startswith("attack: the end")
    assert "\x1b" not in shown[-1]


def test_attack_in_a_pipe_says_what_it_does(tmp_path: Path) -> None:
    _, _, err = cohortium("attack", *TINY, "--json", "--out", str(tmp_path / "page.html"))
    lines = [line for line in err.splitlines() if line.startswith("attack: ")]
    assert lines[0] == "attack: a bare update, training, 0%"
    for part in ("a bare update, search", "the exact sum, training", "what the coordinator sees"):
        assert any(part in line for line in lines)
