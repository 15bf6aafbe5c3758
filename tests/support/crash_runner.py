"""Processes to be killed: torch is imported once, and every run is a fork of this process.

    python -m tests.support.crash_runner

It reads one order a line, as JSON, and answers with one line when the child is dead or done.
Nothing is computed before the fork, since torch's threads do not survive one.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import attrs
import opacus  # noqa: F401 - so that no child has to import it
import torch
from attrs import frozen

from cohortium import Federation, federation
from cohortium.catalog.discovery import discover
from cohortium.errors import CohortiumError
from cohortium.plugin import LocalResult, LocalTask, SitePrivatizer
from cohortium.runs import result as record
from cohortium.runs import run_state
from cohortium.runs.run_directory import RunDirectory
from cohortium_events import Events
from cohortium_fedavg import FedAvg
from cohortium_gaussian import Gaussian
from cohortium_secagg import SecAgg
from tests.support.federations import tiny_federation

ROUNDS = 3


@frozen(kw_only=True)
class Teacher(FedAvg):
    """Adds to its update what it has kept at the site, so that a lost state shows."""

    def train(self, task: LocalTask, privatizer: SitePrivatizer) -> LocalResult:
        trained = super().train(task, privatizer)
        kept = task.state.get("kept", torch.zeros_like(trained.vector))
        vector = trained.vector + kept
        return attrs.evolve(trained, vector=vector, state={"kept": 0.5 * vector})


def study(name: str) -> Federation:
    """A study by its name; each takes a fraction of a second."""
    parts: dict[str, Any] = {"rounds": ROUNDS, "sites": 4, "threads": 1}
    site_level = Gaussian(unit="site", clip_norm=50.0)
    more: Mapping[str, dict[str, Any]] = {
        "plain": {"trainer": FedAvg(server_optimizer="adam", server_learning_rate=0.05)},
        "stateful": {"trainer": Teacher(learning_rate=0.1)},
        "active": {"adversary": "active", "aggregator": SecAgg(), "sites": 5},
        "seeded": {
            "privatizer": site_level,
            "insecure_seeded_secrets": True,
            "aggregator": SecAgg(),
        },
        "real": {"privatizer": site_level, "aggregator": SecAgg(), "retries": 2},
        "tight": {"privatizer": site_level},
    }
    return tiny_federation(**parts | more[name])


def kill_after(calls: int) -> list[int]:
    """Have this process killed at its `calls`-th call of a function, be it Python's or C's.

    Counted is from when the run's folder is looked at.
    """
    counted = [0]
    create, reopen = RunDirectory.create, RunDirectory.reopen

    def count(_frame: Any, event: str, _argument: Any) -> None:
        if event in ("call", "c_call"):
            counted[0] += 1
            if counted[0] == calls:
                kill_self()

    def counting(inner: Callable[..., Any]) -> Any:
        def begin(*arguments: Any, **options: Any) -> Any:
            sys.setprofile(count)
            return inner(*arguments, **options)

        return staticmethod(begin)

    RunDirectory.create, RunDirectory.reopen = counting(create), counting(reopen)  # type: ignore[method-assign]
    return counted


def kill_at(target: str, when: str, nth: int) -> None:
    """Have this process killed before or after the `nth` call of a method, "module:Class.name"."""
    module, _, path = target.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    inner: Callable[..., Any] = getattr(owner, name)
    calls = [0]

    @functools.wraps(inner)
    def killing(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == nth and when == "before":
            kill_self()
        answer = inner(*arguments, **named)
        if calls[0] == nth:
            kill_self()
        return answer

    setattr(owner, name, killing)


def kill_self() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def run_child(order: Mapping[str, Any]) -> dict[str, Any]:
    """What a child does with its life."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    counted = [0]
    if "largest" in order:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest"], order["largest"]))
    if order.get("is_nobody"):
        # Another user may not be able to read the interpreter's own folder later on.
        importlib.import_module("cohortium.runs.driver")
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    if "window" in order:
        kill_at(*order["window"])
    if "version" in order:
        versions = record.versions() | {"torch": order["version"]}
        setattr(run_state, "versions", lambda: versions)  # noqa: B010 - another module's name
    subject = attrs.evolve(study(order["study"]), **order.get("changes", {}))
    act = subject.resume if order["act"] == "resume" else subject.run
    if "calls" in order:
        counted = kill_after(order["calls"])
    try:
        result = act(order["folder"], observers=[Events()])
    except CohortiumError as error:
        return {"error": str(error), "kind": type(error).__name__, "exit_code": error.exit_code}
    finally:
        sys.setprofile(None)
    return {
        "weights": result.weights_sha256,
        "rounds": result.rounds,
        "attempts": [event.attempt for event in result.history],
        "epsilon": result.guarantee and result.guarantee.epsilon,
        "calls": counted[0],
    }


def serve() -> None:
    """Obey orders until there are no more."""
    import torch._dynamo  # noqa: F401 - which optimizers import

    found = discover()
    setattr(federation, "discover", lambda: found)  # noqa: B010 - another module's name
    for line in sys.stdin:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.close(reader)
                os.write(writer, json.dumps(run_child(json.loads(line))).encode())
                status = 0
            finally:
                os._exit(status)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            said = pipe.read()
        _, status = os.waitpid(child, 0)
        answer = json.loads(said) if said else {}
        print(json.dumps({"status": os.waitstatus_to_exitcode(status), **answer}), flush=True)  # noqa: T201


class ForkServer:
    """The other end: orders for a fork server."""

    def __init__(self) -> None:
        here = str(Path(__file__).parents[2])
        paths = [here, *map(os.path.abspath, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        )

    def submit(self, **order: Any) -> dict[str, Any]:
        """What became of a child: its exit status, and what it said of its run."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        self._process.communicate()


if __name__ == "__main__":
    serve()
