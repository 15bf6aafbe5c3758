"""A SuperLink, SuperNodes and site processes on loopback with TLS, as a user would start them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli_w
from attrs import define, field

from cohortium import tables

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "docs" / "deploy"

COMMANDS = {
    "cohortium": "cohortium.cli:main",
    "flower-superexec": "flwr.supercore.cli:flower_superexec",
    "flower-superlink": "flwr.superlink.cli:flower_superlink",
    "flower-supernode": "flwr.supernode.cli:flower_supernode",
    "flwr": "flwr.cli.app:app",
    "flwr-clientapp": "flwr.supernode.cli:flwr_clientapp",
    "flwr-serverapp": "flwr.superlink.cli:flwr_serverapp",
}
"""The console scripts, made anew: an environment that is laid over another lacks them."""

PATIENCE = 300.0
"""Seconds for anything that has to come up."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@define(eq=False)
class Deployment:
    """The processes of one deployment under `folder`, which `cohortium deal` has made."""

    folder: Path
    sites: int
    port: int = field(factory=free_port)
    processes: dict[str, subprocess.Popen[bytes]] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        scripts = self.folder / "bin"
        scripts.mkdir()
        for name, target in COMMANDS.items():
            module, function = target.split(":")
            lines = f"#!{sys.executable}\nimport sys\nfrom {module} import {function}\n"
            (scripts / name).write_text(f"{lines}sys.exit({function}())\n")
            (scripts / name).chmod(0o755)
        script = ["sh", str(DEPLOY / "certificates.sh"), "localhost", str(self.folder / "tls")]
        subprocess.run(script, check=True, capture_output=True)
        (self.folder / "app").mkdir()
        app = tables.read(DEPLOY / "app" / "pyproject.toml", what="the app")
        app["tool"]["flwr"]["app"]["config"] |= {
            "study": str(self.folder / "study.toml"),
            "out": str(self.folder / "run"),
        }
        (self.folder / "app" / "pyproject.toml").write_text(tomli_w.dumps(app))
        home = self.folder / "home"
        home.mkdir()
        link = {
            "address": f"localhost:{self.port}",
            "root-certificates": str(self.folder / "tls" / "ca.pem"),
        }
        superlinks = {"superlink": {"default": "study", "study": link}}
        (home / "config.toml").write_text(tomli_w.dumps(superlinks))

    @property
    def environment(self) -> Mapping[str, str]:
        return os.environ | {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "FLWR_HOME": str(self.folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
            "OMP_NUM_THREADS": "1",
        }

    def start(self, name: str, *command: str, **changes: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={**self.environment, **changes},
                # A node's whole group goes when it is killed.
                start_new_session=True,
            )

    def start_all(self) -> None:
        tls = self.folder / "tls"
        self.start(
            "superlink",
            "flower-superlink", "--port", str(self.port),
            "--ssl-ca-certfile", str(tls / "ca.pem"),
            "--ssl-certfile", str(tls / "server.pem"),
            "--ssl-keyfile", str(tls / "server.key"),
            "--disable-runtime-dependency-installation",
        )  # fmt: skip
        for site in range(self.sites):
            self.start(f"site-{site}", "cohortium", "site", f"site-{site}/site.toml")
            listening = self.folder / f"site-{site}" / "site.sock"
            self.start(
                f"node-{site}",
                "flower-supernode", "--superlink", f"localhost:{self.port}",
                "--root-certificates", str(tls / "ca.pem"), "--port", str(free_port()),
                "--node-config", f'socket="{listening}"',
                FLWR_HOME=str(self.folder / f"home-{site}"),
            )  # fmt: skip
        self.until(lambda: self.log("superlink").count("Activated node") == self.sites)

    def run(self, **config: Any) -> subprocess.Popen[bytes]:
        """Start `flwr run`; its log is that of the run."""
        settings = " ".join(f"{key}={value}" for key, value in config.items())
        command = ["flwr", "run", "app", "study", "--stream"]
        self.start("lead", *command, *(["--run-config", settings] if settings else []))
        return self.processes["lead"]

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text("utf-8", errors="replace")

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, self.log("superlink")[-3000:]
            time.sleep(0.05)

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def end(self) -> None:
        for name in list(self.processes):
            if self.processes[name].poll() is None:
                self.kill(name)


@contextmanager
def deployed(folder: Path, sites: int) -> Iterator[Deployment]:
    deployment = Deployment(folder, sites)
    try:
        deployment.start_all()
        yield deployment
    finally:
        deployment.end()
