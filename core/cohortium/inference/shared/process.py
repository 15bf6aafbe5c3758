"""The process of a party, seen by the process that starts it."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from attrs import field, frozen

from cohortium.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

PROGRAM: Final = Path(__file__).with_name("party.py")

LEAVE_SECONDS: Final = 10.0
"""Seconds in which a party must end after its last event."""


@frozen(eq=False)
class PartyProcess:
    """A running party. Leave its context to end it."""

    python: Path
    _process: subprocess.Popen[bytes] = field(repr=False)

    @classmethod
    def start(
        cls, python: Path, job: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> Self:
        """Start a party.

        Args:
            python: A Python that has SPU.
            job: Public description of the party's part.
            arrays: Its secret arrays. They pass through a pipe, and no file.

        Raises:
            RequestError: `python` cannot be started.
        """
        secret = io.BytesIO()
        np.savez(secret, allow_pickle=False, **arrays)
        data = secret.getvalue()
        try:
            process = subprocess.Popen(  # noqa: S603 - the user names the Python
                [python, "-I", PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # the library's log
            )
        except OSError as error:
            raise RequestError(
                f"cannot start {python}: {error.strerror}; name a Python that has spu with "
                "--spu-python."
            ) from error
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the events show the reason
            process.stdin.write(json.dumps({**job, "bytes": len(data)}).encode() + b"\n" + data)
            process.stdin.flush()
        return cls(python, process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def kill_after(self, seconds: float) -> threading.Timer:
        """End the process after some time, unless the returned timer is cancelled."""
        timer = threading.Timer(seconds, self._process.kill)
        timer.daemon = True
        timer.start()
        return timer

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the events until the process ends.

        Raises:
            RequestError: The Python has not the packages, or cannot use them.
        """
        assert self._process.stdout is not None
        is_ready = False
        for line in self._process.stdout:
            event: dict[str, Any] = json.loads(line)
            if event["event"] == "missing":
                raise RequestError(
                    f"{self.python} has no package '{event['package']}'; make an environment of "
                    "Python 3.11 with `pip install spu==0.9.5`, and name its Python with "
                    "--spu-python."
                )
            is_ready |= event["event"] == "ready"
            if event["event"] in {"done", "failed"}:
                self.kill_after(LEAVE_SECONDS)
            yield event
        if not is_ready:
            raise RequestError(
                f"{self.python} ends before the party is ready; try whether `{self.python} -c "
                "'import spu'` ends without an error."
            )

    def reply(self, refusal: str | None) -> None:
        """Tell an owner's process whether to compute the outputs."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"refusal": refusal}).encode() + b"\n")
            self._process.stdin.flush()
