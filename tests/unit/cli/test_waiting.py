"""Threads of a command wait without using the processor, unless the user has chosen otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SHOW = """
import os, sys
from cohortium.cli import main
assert "torch" not in sys.modules
try:
    main(["--version"])
except SystemExit:
    assert "torch" not in sys.modules
    names = (name for name in sorted(os.environ) if name[:4] in ("OMP_", "GOMP", "KMP_"))
    print(*(f"{name}={os.environ[name]}" for name in names))
"""


@pytest.mark.parametrize(
    "chosen",
    [{}, {"GOMP_SPINCOUNT": "1000"}, {"OMP_WAIT_POLICY": "active"}, {"KMP_BLOCKTIME": "200"}],
    ids=lambda chosen: "-".join(chosen) or "nothing",
)
def test_command_waits_passively_unless_the_user_chose(chosen: dict[str, str]) -> None:
    environ = {n: v for n, v in os.environ.items() if n[:4] not in ("OMP_", "GOMP", "KMP_")}
    done = subprocess.run(
        [sys.executable, "-c", SHOW],
        env=environ | chosen,
        capture_output=True,
        text=True,
        check=True,
    )
    told = dict(each.split("=") for each in done.stdout.splitlines()[-1].split())
    assert told == (chosen or {"OMP_WAIT_POLICY": "passive"})
