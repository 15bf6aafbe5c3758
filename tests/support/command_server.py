"""The `cohortium` command in new processes that need not import torch again.

    python -m tests.support.command_server

The server imports the libraries once and reads one order a line, as JSON.
It forks a process for each order, with the order's folder, environment and streams.
It computes nothing before the fork, since torch's threads do not survive one.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

LIBRARIES = (
    "cohortium.cli",
    "cohortium.runs.driver",
    "jinja2",
    "opacus",
    "safetensors.torch",
    "scipy.stats",
    "torch._dynamo",
)
"""The imports of a run that take the longest."""


def run_command(order: Mapping[str, Any]) -> NoReturn:
    """Become `python -m cohortium` as the order has it."""
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "out"), (2, "errors")):
        os.dup2(os.open(order[name], os.O_WRONLY), number)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - a descriptor
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(  # noqa: SIM115
        2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False
    )
    paths = order["environment"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [order["folder"], *filter(None, paths)]
    importlib.invalidate_caches()
    sys.argv = ["cohortium", *order["arguments"]]
    code: object = 0
    try:
        runpy.run_module("cohortium", run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        code = stop.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def serve() -> None:
    """Fork for each order, and print the exit code of the fork."""
    for name in LIBRARIES:
        importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                run_command(json.loads(line))
            finally:
                os._exit(70)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201 - the answer


@functools.cache
def _server() -> subprocess.Popen[str]:
    """Start the server of this process, which ends with it."""
    here = str(Path(__file__).parents[2])
    paths = [here, *map(os.path.abspath, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    server = subprocess.Popen(
        [sys.executable, "-m", __spec__.name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
    )
    atexit.register(server.communicate)
    return server


def command(
    *arguments: str, cwd: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run `python -m cohortium` in a process of its own, and wait for it."""
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        out, errors = Path(folder, "out"), Path(folder, "errors")
        out.touch()
        errors.touch()
        order = {
            "arguments": arguments, "folder": str(cwd), "environment": dict(environment),
            "out": str(out), "errors": str(errors),
        }  # fmt: skip
        print(json.dumps(order), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(
            arguments, code, out.read_text("utf-8"), errors.read_text("utf-8")
        )


if __name__ == "__main__":
    serve()
