"""Commands in new processes that need not import their libraries again.

    python -S -I tests/support/warm_processes.py SOCKET MODULE FUNCTION NAME ARGUMENT…

A server imports the libraries once, and forks a process for each command.
The caller above hands over its folder, environment, streams and process group, and waits.
So a signal to the group reaches both, and the caller ends with the exit code of the command.
All commands end if the server does.
The server has one thread and computes nothing, so that a fork finds nothing half done.
Encodings and locale are those that the server's interpreter began with.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Mapping
from typing import Any, NoReturn, Self

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

STREAMS = 3
"""Descriptors that a caller hands over: 0, 1 and 2."""


def call(path: str, module: str, function: str, *arguments: str) -> int:
    """Have the server run a command, and return its exit code."""
    order = {
        "module": module, "function": function, "group": os.getpgrp(),
        "folder": os.fsencode(os.getcwd()).decode("latin-1"),  # noqa: PTH109 - imports little
        "arguments": [os.fsencode(each).decode("latin-1") for each in arguments],
        "environment": [
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in os.environb.items()
        ],
    }  # fmt: skip
    data = json.dumps(order).encode()
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        socket.send_fds(server, [len(data).to_bytes(8, "big")], range(STREAMS))
        server.sendall(data)
        with server.makefile("rb") as answer:
            return int(answer.readline() or 1)


def _become(caller: socket.socket) -> NoReturn:
    """Become the command that the caller orders."""
    import atexit
    import importlib
    import signal
    import threading
    import traceback

    head, streams, *_ = socket.recv_fds(caller, 8, STREAMS)
    with caller.makefile("rb") as rest:
        order: dict[str, Any] = json.loads(rest.read(int.from_bytes(head, "big")))
    caller.close()
    os.setpgid(0, order["group"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(order["folder"].encode("latin-1"))
    os.environ.clear()
    for name, value in order["environment"]:
        os.environb[name.encode("latin-1")] = value.encode("latin-1")
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.argv = [os.fsdecode(each.encode("latin-1")) for each in order["arguments"]]
    # As for a console script. The server's own first entry is its folder at the time.
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = filter(None, paths)
    importlib.invalidate_caches()
    code: object
    try:
        code = getattr(importlib.import_module(order["module"]), order["function"])()
    except SystemExit as stop:
        code = stop.code
        if isinstance(code, str):
            sys.stderr.write(f"{code}\n")
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
        code = 1
    # As at the end of an interpreter, which this fork does not reach.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def serve(path: str, *libraries: str) -> NoReturn:
    """Fork a process for each caller, until the standard input ends."""
    import importlib
    import selectors
    import signal
    from pathlib import Path

    for name in libraries:
        importlib.import_module(name)
    running: dict[int, tuple[int, socket.socket]] = {}
    selector = selectors.DefaultSelector()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    selector.register(0, selectors.EVENT_READ)
    selector.register(listener, selectors.EVENT_READ)
    os.write(1, b"ready\n")
    while True:
        for key, _ in selector.select():
            if key.fd == 0:
                for child, _caller in running.values():
                    os.kill(child, signal.SIGKILL)
                os._exit(0)
            elif key.fileobj is listener:
                caller, _address = listener.accept()
                assert len([*Path("/proc/self/task").iterdir()]) == 1, "a fork needs one thread"
                child = os.fork()
                if child == 0:
                    selector.close()
                    listener.close()
                    for number, (_child, other) in running.items():
                        os.close(number)
                        other.close()
                    try:
                        _become(caller)
                    finally:
                        os._exit(70)
                number = os.pidfd_open(child)
                selector.register(number, selectors.EVENT_READ)
                running[number] = child, caller
            else:
                child, caller = running.pop(key.fd)
                selector.unregister(key.fd)
                os.close(key.fd)
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                with caller, contextlib.suppress(OSError):  # it may be gone
                    caller.sendall(b"%d\n" % (code if code >= 0 else 128 - code))


class WarmProcesses:
    """A server of this process, which the end of a `with` ends with all its commands."""

    def __init__(
        self, *libraries: str, environment: Mapping[str, str] = os.environ, module: str = __name__
    ) -> None:
        import subprocess
        import tempfile
        from pathlib import Path

        self._folder = tempfile.TemporaryDirectory(prefix="warm")
        self._socket = str(Path(self._folder.name, "socket"))
        root = Path(__file__).parents[2]
        code = f"import sys; sys.path.append({str(root)!r}); from {module} import serve\n"
        self._server = subprocess.Popen(
            [sys.executable, "-c", f"{code}serve(*sys.argv[1:])", self._socket, *libraries],
            # Python's streams stay those of pipes, as most commands' are: none can seek.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**environment, "OMP_NUM_THREADS": "1"},
            # A command joins the process group of its caller, which must be of this session.
            process_group=0,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server and its commands."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        assert self._server.stderr is not None
        self._server.stdin.close()
        self._server.stdout.close()
        with self._server.stderr as faults:
            sys.stderr.write(faults.read().decode("utf-8", "replace"))
        self._server.wait()
        self._folder.cleanup()

    def wait(self) -> Self:
        """Wait until commands can be called."""
        assert self._server.stdout is not None
        if not self._server.stdout.closed:
            with self._server.stdout as said:
                assert said.readline() == b"ready\n"
        return self

    def command(self, module: str, function: str, name: str) -> list[str]:
        """The words of a command, before its arguments; call it after `wait`."""
        return [sys.executable, "-S", "-I", __file__, self._socket, module, function, name]


if __name__ == "__main__":
    sys.exit(call(*sys.argv[1:]))
