"""What people see of a run: on a terminal of any width, and in a log file."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from rich.console import Console

from cohortium.plugin import RoundCompleted, RunCompleted, RunStarted, SiteReplied
from cohortium.testing.observers import SCORES, sample_events
from cohortium_progress._live_view import LiveView, sparkline, view
from cohortium_progress._plain_view import PlainView
from cohortium_progress._run_progress import RunProgress

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def played(*, full: bool = True, upto: int | None = None) -> RunProgress:
    """A course two rounds long, each of which took 30 seconds."""
    clock = Clock()
    progress = RunProgress(clock)
    for event in sample_events(None, full=full)[:upto]:
        if isinstance(event, RoundCompleted):
            clock.now += 30
        progress.take(event)
    return progress


def drawn(progress: RunProgress, **terms: Any) -> list[str]:
    console = Console(file=io.StringIO(), **terms)
    console.print(view(progress, console))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [24, 40, 59, 60, 80, 120])
@pytest.mark.parametrize("full", [True, False])
def test_progress_rows_fit_terminal_width(width: int, full: bool) -> None:
    lines = drawn(played(full=full), width=width, force_terminal=True)
    assert len(lines) == (4 if full else 2)
    for line in lines:
        assert len(ESCAPE.sub("", line)) <= width
    text = "\n".join(lines)
    assert ("━" in text) == (width >= 60)


def test_view_shows_progress_scores_and_epsilon() -> None:
    text = "\n".join(drawn(played(), width=100))
    assert "2 of 2" in text
    assert "2 of 3 answered, 2 dropped so far, 1 tried again" in text
    assert "accuracy 50.0%, loss 0.700" in text
    assert "ε 2.00 of 2.00 at δ 1e-05" in text
    midway = "\n".join(drawn(played(upto=5), width=100))
    assert "1 of 2, about 0:00:30 left" in midway


def test_site_replies_are_counted_on_arrival() -> None:
    progress = played(upto=1)
    progress.take(SiteReplied(round=0, attempt=0, stage=1, site=2, num_replied=2, num_asked=3))
    assert "2 of 3 answered, exchange 2" in "\n".join(drawn(progress, width=100))


def test_remaining_time_follows_recent_rounds() -> None:
    clock = Clock()
    progress = RunProgress(clock)
    progress.take(RunStarted(folder=None, rounds=100, sites=1, parameters=1, guarantee=None))
    assert progress.left is None
    for number in range(20):
        clock.now += 50 if number < 5 else 2
        progress.take(
            RoundCompleted(
                round=number, attempt=number, contributors=(0,), dropped=(), guarantee_so_far=None,
                scores=None, upload_bytes_per_site=1, seconds_train=1.0, seconds_aggregate=0.0,
            )
        )  # fmt: skip
    assert progress.left is not None
    assert progress.left.total_seconds() == 160
    clock.now += 1
    assert progress.left.total_seconds() == 159
    clock.now += 10_000
    assert progress.left.total_seconds() == 0


def test_plain_log_has_one_line_per_round() -> None:
    console = Console(file=io.StringIO(), soft_wrap=True, width=20)
    lines = PlainView(console, RunProgress(Clock()))
    for event in sample_events(None):
        lines(event)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "\x1b" not in text
    assert [line for line in text.splitlines() if line.startswith("round 2")] == [
        "round 2/2: 2 sites, 1 dropped, loss 0.700, accuracy 50.0%, ε 2.00 of 2.00"
    ]
    assert "round 1: site 1: it holds NaN [sic]." in text
    (told,) = [line for line in text.splitlines() if line.startswith("evaluated")]
    assert told == (
        "evaluated at 2 sites after round 1: accuracy 50.0% (95 %: 30.0% to 70.0%), ε 2.00 of the "
        "test images"
    )


def test_sparkline_spans_least_to_greatest() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▄█"
    assert sparkline([0.3]) == "▁"
    assert len(sparkline([float(n) for n in range(99)])) == 16


def test_undetermined_score_is_no_number() -> None:
    """Validation images that all lack a finding determine no AUC."""
    progress = played()
    first = RoundCompleted(
        round=1, attempt=1, contributors=(0,), dropped=(), guarantee_so_far=None,
        scores=evolve(SCORES, metrics={"auc": None, "loss": 0.7}), upload_bytes_per_site=1,
        seconds_train=1.0, seconds_aggregate=0.0,
    )  # fmt: skip
    progress.take(first)
    (line,) = [line for line in drawn(progress, width=100) if line.startswith("scores")]
    assert "AUC unknown, loss 0.700" in line
    assert "nan" not in line
    plain = Console(file=io.StringIO(), soft_wrap=True)
    PlainView(plain, RunProgress(Clock()))(first)
    assert isinstance(plain.file, io.StringIO)
    assert "loss 0.700, AUC unknown" in plain.file.getvalue()


def test_view_without_unicode_has_no_bars() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", errors="backslashreplace")
    console = Console(file=file, width=100)
    console.print(view(played(), console))
    file.flush()
    assert b"\\u258" not in file.buffer.getvalue()


def test_live_view_ends_with_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    live = LiveView(console)
    live(sample_events(None)[0])
    live(RunCompleted(scores=SCORES, guarantee=None, weights_sha256="0" * 64, seconds=1.0))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert text.endswith("\x1b[?25h")  # the cursor is back
    assert not re.search(r"\x1b\[(3|4|9)[0-9]m", text)
    assert (
        LiveView(console)(RunCompleted(scores=None, guarantee=None, weights_sha256="", seconds=0))
        is None
    )


SMALL = [
    "--set", "dataset.examples=300", "--set", "dataset.validation=50", "--set", "dataset.test=0",
]  # fmt: skip


def until(process: subprocess.Popen[bytes], terminal: int, words: bytes) -> bytes:
    """What `process` writes to its terminal until `words` come, or it ends."""
    text, deadline = b"", time.monotonic() + 240
    while words not in text and time.monotonic() < deadline:
        if not select.select([terminal], [], [], 1)[0]:
            if process.poll() is not None:
                break
            continue
        try:
            text += os.read(terminal, 65536)
        except OSError:  # the other side is closed
            break
    return text


@pytest.mark.slow
def test_ctrl_c_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    terminal, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "cohortium", "run", *SMALL, "--out", "record"],
        cwd=tmp_path, stdin=side, stdout=side, stderr=side, close_fds=True,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "80"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )  # fmt: skip
    os.close(side)
    try:
        seen = until(process, terminal, b"accuracy")
        assert b"\x1b[?25l" in seen
        process.send_signal(signal.SIGINT)
        seen = until(process, terminal, b"cohortium resume")
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    assert b"\x1b[?25h" in seen
    assert b"Traceback" not in seen
    assert b"cohortium: stopped" in seen.split(b"\x1b[?25h")[-1]


@pytest.mark.slow
def test_piped_log_stays_plain_despite_force_color(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cohortium", "run", *SMALL, "--set", "federation.rounds=2",
         "--set", "federation.observers=['progress']", "--out", "record"],
        cwd=tmp_path, env=os.environ | {"FORCE_COLOR": "1", "TERM": "xterm"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    rounds = [ESCAPE.sub("", line) for line in done.stderr.splitlines()]
    assert len([line for line in rounds if line.startswith("round ")]) == 2
    assert "\x1b[?25" not in done.stderr
    assert "\x1b[2K" not in done.stderr
