"""The checks by name: `nox -l` lists them, `nox -s lint types` runs two.

Sessions use the environment that nox itself is installed in, except `pythons`, which makes one
for each interpreter that it finds, and `shares`, which makes one for the library SPU.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2024.10"
nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "imports", "types", "fast"]

PYTHONS = ("3.11", "3.12", "3.13")

BUSY_LOOP = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
BUSY_TESTS = (
    "tests/unit/deployment/test_throttling.py",
    "tests/unit/deployment/test_unix_socket.py",
    "tests/unit/ledger/test_ledger.py",
    "tests/integration/test_timeouts.py",
)
"""Tests with threads, processes, locks and deadlines, which take a minute in all."""


def run(session: nox.Session, tool: str, *args: str) -> None:
    """Run a tool of the environment that nox is installed in, whether or not it is activated."""
    session.run(str(Path(sys.executable).with_name(tool)), *args)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, form and spelling."""
    run(session, "ruff", "check")
    run(session, "ruff", "format", "--check")
    run(session, "codespell")


@nox.session
def imports(session: nox.Session) -> None:
    """Check that packages import only what lies below them."""
    run(session, "lint-imports", "--no-cache", "--no-logo")


@nox.session
def types(session: nox.Session) -> None:
    """Check all types strictly."""
    run(session, "mypy")


@nox.session
def fast(session: nox.Session) -> None:
    """Run the tests that are not slow, as plain `pytest` does."""
    run(session, "pytest", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """Run the slow tests."""
    run(session, "pytest", "-m", "slow", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run every test."""
    run(session, "pytest", "-m", "", *session.posargs)


@nox.session
def busy(session: nox.Session) -> None:
    """Run some tests with processes and deadlines while other processes keep all cores busy."""
    with contextlib.ExitStack() as stack:
        for _ in range(os.cpu_count() or 1):
            command = [sys.executable, "-c", BUSY_LOOP]
            loop = stack.enter_context(subprocess.Popen(command))  # noqa: S603 - the line above
            stack.callback(loop.kill)
        run(session, "pytest", *BUSY_TESTS, *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation site; a broken link is an error."""
    run(session, "mkdocs", "build", "--strict", *session.posargs)


@nox.session(venv_backend="virtualenv", python=PYTHONS)
def pythons(session: nox.Session) -> None:
    """Install the package under an interpreter, and run the tests that are not slow."""
    session.install("-c", "constraints.txt", "-e", ".[dev]")
    session.run("pytest", *session.posargs)


@nox.session(venv_backend="virtualenv", python="3.11")
def shares(session: nox.Session) -> None:
    """Test inference on secret shares, with SPU in an environment of its own."""
    session.install("spu==0.9.5")
    python = str(Path(session.bin) / "python")
    pytest = str(Path(sys.executable).with_name("pytest"))
    test = "tests/integration/test_shared_inference.py"
    session.run(pytest, "-m", "", "-n0", test, *session.posargs, external=True,
                env={"COHORTIUM_SPU_PYTHON": python})  # fmt: skip
