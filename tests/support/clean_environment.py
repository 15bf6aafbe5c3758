"""A clean environment, in which a stranger's package is installed beside ours."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

COMMAND = "from cohortium.cli import main; main()"


class Python:
    """The interpreter of an environment of its own, used in the folder `workload`."""

    def __init__(self, path: Path, workload: Path) -> None:
        self.path, self.workload = path, workload

    def __call__(self, *arguments: str, cwd: Path | None = None) -> str:
        environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(
            [str(self.path), *arguments],
            cwd=cwd or self.workload,
            env={**environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def cohortium(self, *arguments: str) -> str:
        return self("-c", COMMAND, *arguments)

    def install(self, *sources: Path) -> None:
        options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")
        self("-m", "pip", "install", *options, *map(str, sources))


def clean_python(workload: Path) -> Python:
    """A new environment that sees the packages of the one in which the tests run."""
    for needed in ("hatchling", "pip"):
        pytest.importorskip(needed, reason=f"{needed} is needed to build and install a package")
    venv.create(workload / "env", with_pip=False)
    python = Python(
        workload / "env" / ("Scripts" if os.name == "nt" else "bin") / "python", workload
    )
    own = Path(python("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # `addsitedir` and not the bare path: an editable install of ours is a .pth file in there.
    parent = sysconfig.get_path("purelib")
    (own / "parent.pth").write_text(f"import site; site.addsitedir({parent!r})\n", "utf-8")
    return python
