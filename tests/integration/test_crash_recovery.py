"""A run that nothing kills: processes that are killed anywhere, and what goes on after them."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cohortium.ledger.ledger import Ledger
from cohortium.storage.atomic import UNFINISHED
from tests.support.crash_runner import ROUNDS, ForkServer

KILLED = -9

REPEATABLE = ("plain", "stateful", "active", "seeded")
"""Studies whose attempts repeat themselves to the last bit."""

WINDOWS = (
    ("cohortium.runs.run_directory:RunDirectory._write", (1, 2)),
    ("pathlib:Path.replace", (1, 2, 5)),
    ("cohortium.runs.checkpoint:RunLog.log_attempt", (1, 2)),
    ("cohortium.runs.checkpoint:RunLog.log_round", (1, 3)),
    ("cohortium.runs.checkpoint:Checkpoint.write", (1, 2, 3)),
    ("cohortium.runs.checkpoint:RunLog.log_result", (1,)),
    ("cohortium.runs.run_directory:RunDirectory.write_result", (1,)),
    ("cohortium_events:EventWriter.__call__", (1, 2, 4)),
)
"""What is written in every run, and which times of it."""

LEDGER = ("cohortium.ledger.account:Account.charge", (1, 3, 5))
STATE = ("cohortium.storage.trainer_state:TrainerStateFile.write", (1, 6))


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def whole(server: ForkServer) -> dict[str, dict[str, Any]]:
    """What each study comes to where nothing is killed."""
    with tempfile.TemporaryDirectory() as folder:
        return {
            name: server.submit(study=name, act="run", folder=f"{folder}/{name}", calls=1 << 40)
            for name in REPEATABLE
        }


def go_on(server: ForkServer, study: str, folder: Path, **order: Any) -> dict[str, Any]:
    """Whatever comes next for the run in `folder`, as its user would have it."""
    act = "resume" if (folder / "study.toml").exists() else "run"
    return server.submit(study=study, act=act, folder=str(folder), **order)


def events_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def assert_whole(folder: Path, answer: dict[str, Any]) -> None:
    """The record is that of one run, however often it was begun."""
    result = json.loads((folder / "result.json").read_text())
    assert result["weights_sha256"] == answer["weights"]
    assert [row["round"] for row in result["history"]] == list(range(1, answer["rounds"] + 1))
    events = events_of(folder)
    ends = [event["round"] for event in events if event["event"] == "RoundCompleted"]
    assert ends == list(range(answer["rounds"]))
    assert events[0]["event"] == "RunStarted"
    assert events[-1]["event"] == "RunCompleted"
    assert events[-1]["weights_sha256"] == answer["weights"]
    assert not list(folder.rglob(f"*{UNFINISHED}"))


def charged(folder: Path) -> list[int]:
    """How many attempts stand in the ledger, by site."""
    with Ledger(folder / "ledger.sqlite").read_transaction() as book:
        return [sum(book.charge_counts(name).values()) for name in book.names()]


@pytest.mark.slow
def test_resume_after_random_kills_reaches_same_bits(
    server: ForkServer, whole: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    rng, kills, lives = random.Random(6), 0, 0
    while kills < 24:
        study = REPEATABLE[lives % len(REPEATABLE)]
        folder = tmp_path / str(lives)
        lives += 1
        answer = {"status": KILLED}
        for _ in range(7):
            instant = rng.randrange(1, whole[study]["calls"])
            answer = go_on(server, study, folder, calls=instant)
            kills += answer["status"] == KILLED
            if answer["status"] != KILLED:
                break
        if answer["status"] == KILLED:
            answer = go_on(server, study, folder)
        assert answer.get("weights") == whole[study]["weights"], (study, answer)
        assert_whole(folder, answer)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("window", [*WINDOWS, LEDGER, STATE], ids=lambda window: window[0])
def test_resume_after_kill_around_writes_reaches_same_bits(
    server: ForkServer,
    whole: dict[str, dict[str, Any]],
    tmp_path: Path,
    window: tuple[str, tuple[int, ...]],
    when: str,
) -> None:
    target, times = window
    study = "stateful" if target == STATE[0] else "seeded"
    folder = tmp_path / "run"
    for nth in times:
        answer = go_on(server, study, folder, window=[target, when, nth])
        assert answer["status"] == KILLED, answer
        if when == "after" and target.endswith(".log_result"):
            refused = go_on(server, study, folder)
            assert refused["kind"] == "RequestError"
            assert "is finished; its result is" in refused["error"]
            return
    answer = go_on(server, study, folder)
    assert answer.get("weights") == whole[study]["weights"], answer
    assert_whole(folder, answer)
    if study == "seeded":
        assert charged(folder) == [ROUNDS] * 4


@pytest.mark.slow
def test_resume_with_real_noise_spends_interrupted_attempt(
    server: ForkServer, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    window = ["cohortium.ledger.account:Account.charge", "after", 2]
    assert go_on(server, "real", folder, window=window)["status"] == KILLED
    assert go_on(server, "real", folder, window=window)["status"] == KILLED
    answer = go_on(server, "real", folder)
    # Two retries were planned for, and two attempts were lost.
    assert (answer["rounds"], answer["attempts"]) == (ROUNDS, [2, 3, 4])
    assert_whole(folder, answer)
    # Sites 0 and 1 were charged for what they had begun.
    assert charged(folder) == [ROUNDS + 2, ROUNDS + 2, ROUNDS, ROUNDS]
    started = [event for event in events_of(folder) if event["event"] == "RunStarted"]
    assert any("counts as spent" in warning for warning in started[-1]["warnings"])


@pytest.mark.slow
def test_resume_without_retries_loses_one_round(server: ForkServer, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    window = ["cohortium.ledger.account:Account.charge", "before", 6]
    assert go_on(server, "tight", folder, window=window)["status"] == KILLED
    answer = go_on(server, "tight", folder)
    assert (answer["rounds"], answer["attempts"]) == (ROUNDS - 1, [0, 2])
    assert_whole(folder, answer)
    assert max(charged(folder)) == ROUNDS
    started = [event for event in events_of(folder) if event["event"] == "RunStarted"]
    assert any("ends after 2 of its 3 rounds" in warning for warning in started[-1]["warnings"])
    assert json.loads((folder / "result.json").read_text())["rounds"] == ROUNDS - 1


@pytest.mark.slow
def test_run_with_all_attempts_lost_spends_nothing_more(server: ForkServer, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for _ in range(ROUNDS):
        window = ["cohortium.ledger.account:Account.charge", "after", 1]
        assert go_on(server, "tight", folder, window=window)["status"] == KILLED
    for _ in range(2):
        answer = go_on(server, "tight", folder)
        assert answer["exit_code"] == 1
        assert "no round was finished, and all attempts" in answer["error"]
    assert charged(folder) == [ROUNDS]


@pytest.mark.slow
@pytest.mark.parametrize("study", ["plain", "seeded"])
def test_full_disk_preserves_last_checkpoint(
    server: ForkServer, whole: dict[str, dict[str, Any]], tmp_path: Path, study: str
) -> None:
    folder = tmp_path / "run"
    window = ["cohortium.runs.checkpoint:Checkpoint.write", "after", 2]
    assert go_on(server, study, folder, window=window)["status"] == KILLED
    checkpoint = (folder / "checkpoint/state.safetensors").read_bytes()
    sizes = {path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    for largest in sorted({0, 1000, *(size - 1 for size in sizes), len(checkpoint) - 1}):
        answer = go_on(server, study, folder, largest=largest)
        if "weights" in answer:
            break
        assert answer["exit_code"] in (1, 2), answer
        assert "Traceback" not in answer["error"]
        assert (folder / "checkpoint/state.safetensors").read_bytes() == checkpoint
    if "weights" not in answer:
        answer = go_on(server, study, folder)
    assert answer["weights"] == whole[study]["weights"]
    assert_whole(folder, answer)


@pytest.mark.slow
def test_unwritable_run_folder_is_refused_without_loss(
    server: ForkServer, whole: dict[str, dict[str, Any]]
) -> None:
    with tempfile.TemporaryDirectory() as outer:
        Path(outer).chmod(0o755)
        folder = Path(outer) / "run"
        window = ["cohortium.runs.checkpoint:Checkpoint.write", "after", 2]
        assert go_on(server, "seeded", folder, window=window)["status"] == KILLED
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        for act, where in (("resume", folder), ("run", Path(outer) / "other")):
            answer = server.submit(study="seeded", act=act, folder=str(where), is_nobody=True)
            assert answer["exit_code"] in (1, 2), answer
            assert "Permission denied" in answer["error"]
            assert str(where) in answer["error"]
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        assert go_on(server, "seeded", folder)["weights"] == whole["seeded"]["weights"]


@pytest.mark.slow
def test_resume_with_other_versions_warns(server: ForkServer, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    window = ["cohortium.runs.checkpoint:Checkpoint.write", "after", 2]
    assert go_on(server, "plain", folder, window=window)["status"] == KILLED
    assert "weights" in go_on(server, "plain", folder, version="9.9")
    started = [event for event in events_of(folder) if event["event"] == "RunStarted"]
    assert any("torch 9.9 in place of" in warning for warning in started[-1]["warnings"])
