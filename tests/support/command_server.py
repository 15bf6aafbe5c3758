"""The `cohortium` command in new processes that need not import torch again."""

from __future__ import annotations

import atexit
import functools
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.support.warm_processes import LIBRARIES, WarmProcesses


@functools.cache
def server() -> WarmProcesses:
    """The server of this process, which ends with it."""
    found = WarmProcesses(*LIBRARIES)
    atexit.register(found.close)
    return found.wait()


def write_script(folder: Path) -> Path:
    """Write the console script `cohortium` into a new folder, which a PATH may begin with."""
    folder.mkdir()
    words = shlex.join(server().command("cohortium.cli", "main", "cohortium"))
    (folder / "cohortium").write_text(f'#!/bin/sh\nexec {words} "$@"\n', "utf-8")
    (folder / "cohortium").chmod(0o755)
    return folder


def command(
    *arguments: str, cwd: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run `cohortium` in a process of its own, and wait for it."""
    return subprocess.run(
        [*server().command("cohortium.cli", "main", "cohortium"), *arguments],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
