"""What a shell is offered, by the script that typer installs in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cohortium.cli import _completion

COMMAND = Path(sys.executable).with_name("cohortium")


def offered(line: str, cwd: Path) -> list[str]:
    """The words that bash offers at the end of `line`."""
    environment = {
        "COMP_WORDS": line,
        "COMP_CWORD": str(line.count(" ")),
        "_COHORTIUM_COMPLETE": "complete_bash",
    }
    done = subprocess.run(
        [COMMAND],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.skipif(not COMMAND.exists(), reason="the command is not installed beside Python")
def test_the_shell_completes_commands_options_and_names(tmp_path: Path) -> None:
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "study.toml").touch()
    (tmp_path / "runs" / "empty").mkdir()
    assert offered("cohortium pre", tmp_path) == ["predict"]
    assert offered("cohortium run --qui", tmp_path) == ["--quiet"]
    assert offered("cohortium check seca", tmp_path) == ["secagg"]
    assert offered("cohortium export ", tmp_path) == ["runs/first"]


def test_completion_finds_run_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/a", "runs/ab", "other/deep/c", "top"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "study.toml").touch()
    assert _completion.run_folders("") == ["runs/a", "runs/ab", "top"]
    assert _completion.run_folders("runs/") == ["runs/a", "runs/ab"]
    assert _completion.run_folders("runs/ab") == ["runs/ab"]
    assert _completion.run_folders("other/d") == ["other/deep/c"]
    assert _completion.run_folders("nowhere/x") == []


def test_settings_and_observers_are_offered() -> None:
    assert ("privatizer.", "") in _completion.overrides("priv")
    assert _completion.overrides("federation.roun") == [("federation.rounds=", "")]
    assert _completion.overrides("privatizer.eps")[0][0] == "privatizer.epsilon="
    assert _completion.overrides("model.nam") == [("model.name=", "which one")]
    assert _completion.overrides("nothing.") == []
    assert ("tensorboard", "observer") in _completion.observer_names("t")
    names = dict(_completion.plugin_names(""))
    assert names["fedprox"] == "trainer"
    assert all(len(note) < 30 for note in names.values())
