"""The command line in this process, and a small study for it."""

from __future__ import annotations

from typer.testing import CliRunner

from cohortium.cli import app

PARTS = """
[dataset]
examples = 120
validation = 16
test = 40
[model]
name = "cnn"
width = 2
[trainer]
name = "fedavg"
learning_rate = 0.01
"""
"""The parts of a study that trains in a second."""


def cohortium(*arguments: str) -> tuple[int, str, str]:
    """Run a command, and return its exit status and what it has printed."""
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr
