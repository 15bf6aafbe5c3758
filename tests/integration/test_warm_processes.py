"""Commands that a warm server forks behave as commands that start from nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.warm_processes import WarmProcesses

COMMANDS = """
import atexit, os, sys

def report():
    atexit.register(print, "at exit")
    print(os.getcwd(), *sys.argv, os.environ["WORD"], sys.stdin.read())
    print("two", file=sys.stderr)
    return 3

def fail():
    raise ValueError("no")

def refuse():
    sys.exit("refused")

def wait():
    print("waits", flush=True)
    sys.stdin.read()

def die():
    os.kill(os.getpid(), 9)
"""


@pytest.fixture(scope="module")
def warm() -> Iterator[WarmProcesses]:
    with WarmProcesses() as server:
        yield server.wait()


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "commands.py").write_text(COMMANDS)
    return {"PYTHONPATH": str(tmp_path), "WORD": "wört"}


def test_command_has_its_folder_arguments_environment_and_streams(
    warm: WarmProcesses, environment: dict[str, str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [*warm.command("commands", "report", "name"), "a b", b"\xff"],
        cwd=tmp_path, env=environment, input=b"typed", capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    words = b" ".join([os.fsencode(tmp_path), b"name a b \xff", "wört".encode(), b"typed"])
    assert done.stdout == words + b"\nat exit\n"
    assert done.stderr == b"two\n"
    assert "WORD" not in os.environ


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [("fail", 1, "ValueError: no\n"), ("refuse", 1, "refused\n"), ("die", 137, "")],
)
def test_command_failure_gives_its_exit_code(
    warm: WarmProcesses, environment: dict[str, str], name: str, code: int, words: str
) -> None:
    command = warm.command("commands", name, name)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stderr.endswith(words)


def waiting(warm: WarmProcesses, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        warm.command("commands", "wait", "wait"),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, process_group=0,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"waits\n"
    return process


def test_signal_to_group_ends_command(warm: WarmProcesses, environment: dict[str, str]) -> None:
    process = waiting(warm, environment)
    os.killpg(process.pid, signal.SIGKILL)
    # The end of its output: nobody is left who could write.
    rest, _ = process.communicate()
    assert rest == b""
    assert process.returncode == -signal.SIGKILL


def test_end_of_server_ends_commands(environment: dict[str, str]) -> None:
    with WarmProcesses() as server:
        process = waiting(server.wait(), environment)
    assert process.stdout is not None
    assert process.stdout.read() == b""
    process.communicate()


def test_encoding_of_server_is_that_of_commands(environment: dict[str, str]) -> None:
    narrow = os.environ | {"PYTHONIOENCODING": "ascii:backslashreplace"}
    with WarmProcesses(environment=narrow) as server:
        command = server.wait().command("commands", "report", "ü")
        done = subprocess.run(command, env=environment, input=b"", capture_output=True, check=False)
    assert b"\\xfc w\\xf6rt" in done.stdout, sys.getfilesystemencoding()
