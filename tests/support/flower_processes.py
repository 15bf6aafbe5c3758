"""A SuperLink, SuperNodes and site processes on loopback with TLS.

The SuperLink, the study lead and the first hospital start each process as a user would.
The processes of the other hospitals are the same commands, forked from a server that has imported
their libraries.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli_w
from attrs import define, field
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from cohortium.study import toml
from tests.support.warm_processes import LIBRARIES, WarmProcesses

ROOT = Path(__file__).parents[2]
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


def free_ports(count: int) -> list[int]:
    """Ports on loopback, all of them different, that nobody listens at."""
    with contextlib.ExitStack() as probes:
        taken = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in taken:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in taken]


def draw_node_key(path: Path) -> Path:
    """Write what `ssh-keygen -t ecdsa -b 256 -N "" -f path` writes; the public half's path."""
    key = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    path.chmod(0o600)
    public = path.with_suffix(".pub")
    public.write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    return public


@define(eq=False)
class Deployment:
    """The processes of one deployment under `folder`, which `cohortium rehearse` has made."""

    folder: Path
    sites: int
    ports: list[int] = field(init=False)
    processes: dict[str, subprocess.Popen[bytes]] = field(factory=dict)
    _warm: WarmProcesses = field(init=False)

    def __attrs_post_init__(self) -> None:
        # One for each node, a stranger's, and the SuperLink's.
        self.ports = free_ports(self.sites + 2)
        modules = {target.split(":")[0] for target in COMMANDS.values()}
        self._warm = WarmProcesses(
            *LIBRARIES, *modules, "cohortium_flower.client_app", environment=self.environment()
        )
        for scripts in ("bin", "warm"):
            (self.folder / scripts).mkdir()
        for name, target in COMMANDS.items():
            module, function = target.split(":")
            new, forked = self.folder / "bin" / name, self.folder / "warm" / name
            lines = f"#!{sys.executable}\nimport sys\nfrom {module} import {function}\n"
            new.write_text(f"{lines}sys.exit({function}())\n")
            words = shlex.join(self._warm.command(module, function, name))
            forked.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
            for script in (new, forked):
                script.chmod(0o755)
        command = ["sh", str(DEPLOY / "certificates.sh"), "localhost", str(self.folder / "tls")]
        subprocess.run(command, check=True, capture_output=True)
        (self.folder / "app").mkdir()
        app = toml.read(DEPLOY / "app" / "pyproject.toml", what="the app")
        app["tool"]["flwr"]["app"]["config"] |= {
            "study": str(self.folder / "study.toml"),
            "out": str(self.folder / "run"),
        }
        (self.folder / "app" / "pyproject.toml").write_text(tomli_w.dumps(app))
        home = self.folder / "home"
        home.mkdir()
        link = {
            "address": f"localhost:{self.ports[-1]}",
            "root-certificates": str(self.folder / "tls" / "ca.pem"),
        }
        superlinks = {"superlink": {"default": "study", "study": link}}
        (home / "config.toml").write_text(tomli_w.dumps(superlinks))

    def environment(self, scripts: str = "bin") -> Mapping[str, str]:
        return os.environ | {
            "PATH": f"{self.folder / scripts}:{os.environ['PATH']}",
            "FLWR_HOME": str(self.folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.3",
            "OMP_NUM_THREADS": "1",
        }

    def start(self, name: str, *command: str, warm: bool = False, **changes: str) -> None:
        """Start a command: from a new interpreter, or `warm`, from the server's."""
        scripts = "warm" if warm else "bin"
        program = str(self.folder / scripts / command[0])
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [program, *command[1:]],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={**self.environment(scripts), **changes},
                # A node's whole group goes when it is killed.
                process_group=0,
            )

    def start_superlink(self) -> None:
        tls = self.folder / "tls"
        self.start(
            "superlink",
            "flower-superlink", "--port", str(self.ports[-1]),
            "--ssl-ca-certfile", str(tls / "ca.pem"),
            "--ssl-certfile", str(tls / "server.pem"),
            "--ssl-keyfile", str(tls / "server.key"),
            "--enable-supernode-auth",
            "--disable-runtime-dependency-installation",
        )  # fmt: skip
        self.until(lambda: "Uvicorn running" in self.log("superlink"))

    def register(self) -> None:
        """Make the key of each node, and have the SuperLink know it, as the study lead would."""
        for site in range(self.sites):
            public = draw_node_key(self.folder / f"node-{site}.key")
            command = ["flwr", "supernode", "register", str(public), "study"]
            self.start(f"register-{site}", *command, warm=site > 0)
        for site in range(self.sites):
            done = self.processes.pop(f"register-{site}").wait(PATIENCE)
            assert done == 0, self.log(f"register-{site}")

    def start_site(self, site: int) -> None:
        command = ["cohortium", "site", f"site-{site}/site.toml"]
        self.start(f"site-{site}", *command, warm=site > 0)

    def start_node(self, site: int, listening: Path | None = None) -> None:
        """Start the SuperNode of a hospital, with its own key and before its own socket."""
        listening = listening or self.folder / f"site-{site}" / "site.sock"
        self._start_node(f"node-{site}", self.ports[site], listening, warm=site > 0)

    def start_stranger(self) -> subprocess.Popen[bytes]:
        """Start a SuperNode whose key nobody has registered."""
        draw_node_key(self.folder / "stranger.key")
        self._start_node(
            "stranger", self.ports[-2], self.folder / "site-0" / "site.sock", warm=True
        )
        return self.processes["stranger"]

    def _start_node(self, name: str, port: int, listening: Path, *, warm: bool) -> None:
        self.start(
            name,
            "flower-supernode", "--superlink", f"localhost:{self.ports[-1]}",
            "--root-certificates", str(self.folder / "tls" / "ca.pem"),
            "--auth-supernode-private-key", str(self.folder / f"{name}.key"),
            "--host", "127.0.0.1", "--port", str(port),
            "--node-config", f'socket="{listening}"',
            warm=warm,
            FLWR_HOME=str(self.folder / f"home-{name}"),
        )  # fmt: skip

    def start_all(self, sockets: Mapping[int, Path] | None = None) -> None:
        """Start everything, and wait for it; `sockets` replaces those of some hospitals."""
        self.start_superlink()
        self._warm.wait()
        self.register()
        for site in range(self.sites):
            self.start_site(site)
            self.start_node(site, listening=(sockets or {}).get(site))
        self.until(lambda: self.log("superlink").count("Activated node") == self.sites)

    def run(self, **config: Any) -> subprocess.Popen[bytes]:
        """Start `flwr run`; its log is that of the run."""
        settings = " ".join(f"{key}={value}" for key, value in config.items())
        command = ["flwr", "run", "app", "study", "--stream"]
        self.start("lead", *command, *(["--run-config", settings] if settings else []))
        return self.processes["lead"]

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text("utf-8", errors="replace")

    def until(self, condition: Callable[[], bool], patience: float = PATIENCE) -> None:
        end = time.monotonic() + patience
        while not condition():
            assert time.monotonic() < end, self.log("superlink")[-3000:]
            time.sleep(0.05)

    def kill_server_app(self) -> None:
        """Kill the process of the study's coordinator, which the SuperLink has started."""
        script = os.fsencode(self.folder / "bin" / "flwr-serverapp")
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if script in (place / "cmdline").read_bytes().split(b"\0"):
                    os.kill(int(place.name), signal.SIGKILL)
                    return
        raise AssertionError(self.log("superlink")[-3000:])

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        # Those that it started may outlive it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def end(self) -> None:
        for name in list(self.processes):
            self.kill(name)
        self._warm.close()


@contextlib.contextmanager
def deployed(folder: Path, sites: int) -> Iterator[Deployment]:
    """A deployment that can be started, and of which no process outlives the block."""
    deployment = Deployment(folder, sites)
    try:
        yield deployment
    finally:
        deployment.end()
