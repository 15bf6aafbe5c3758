"""The driver's view of one worker and its sites."""

from __future__ import annotations

import itertools
import sys
import warnings
from typing import TYPE_CHECKING, Any

import ray
from attrs import define, field
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from cohortium.plugin import RunError
from cohortium_ray._worker import Worker

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cohortium.plugin import SiteFactory, SiteId

LOST = (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    WorkerCrashedError,
)
"""Ray's errors for a lost worker, or for a reply lost with its machine."""

AT_ONCE = 16
"""Sites that a worker gets at once if there is no timeout.  This makes fewer and longer trips."""


@define(eq=False)
class WorkerProxy:
    """A worker and the sites that are assigned to it.

    Attributes:
        recipes: Factories of its sites.
        options: Options with which Ray starts the worker.
        threads: Number of torch threads in the worker.
        waiting: Sites that are still to be asked in this exchange, and their own parts.
        handed: The site or sites that it is answering for.  Empty when its task is not of this
            exchange.
        due: Time after which its task is late.
    """

    recipes: Mapping[SiteId, SiteFactory]
    options: Mapping[str, Any]
    threads: int
    waiting: dict[SiteId, bytes] = field(factory=dict)
    handed: tuple[SiteId, ...] = ()
    due: float = float("inf")
    _worker: Any = None
    _busy: Any = None

    @property
    def busy(self) -> Any:
        """Reference to the worker's current task, if it has one."""
        return self._busy

    def start(self) -> None:
        """Start a worker and its sites, if there is no worker."""
        if self._worker is None:
            self._worker = ray.remote(Worker).options(**self.options).remote(self.threads, sys.path)
            self._busy = self._worker.open.remote(dict(self.recipes))

    def submit(self, exchange: int, broadcast: Any, *, most: int) -> None:
        """Ask the next waiting sites, at most `most` of them."""
        each = dict(itertools.islice(self.waiting.items(), most))
        self.handed = tuple(each)
        # In a list the reference travels as a reference.  The worker fetches its content once.
        self._busy = self._worker.answer.remote(exchange, [broadcast], each)

    def result(self) -> list[tuple[SiteId, bytes]]:
        """Wait for the worker's task, and return the replies to this exchange.

        If the worker has died there are none, and none of its sites waits any more.

        Raises:
            RunError: A message to the worker, or an error that it raises, cannot be read.
            Exception: An error that a site raised: it cannot be created, or there is a fault in a
                plugin.
        """
        handed, done = self.handed, self._busy
        self.handed, self._busy = (), None
        try:
            found = ray.get(done)
        except LOST as error:
            self._mark_dead(error)
            return []
        except RayError as error:
            raise _raised(error) from error
        replies: list[tuple[SiteId, bytes]] = found if handed else []
        for site, _ in replies:
            del self.waiting[site]
        return replies

    def cancel(self) -> None:
        """Drop the late sites.

        These are the sites that are being asked.  If none is, all that wait for a turn are dropped.
        """
        for site in self.handed or tuple(self.waiting):
            del self.waiting[site]
        self.handed = ()

    def stop(self) -> None:
        """End the worker."""
        if self._worker is not None:
            ray.kill(self._worker)
        self._worker = self._busy = None

    def _mark_dead(self, error: RayError) -> None:
        self._worker = None
        self.waiting = {}
        sites = ", ".join(map(str, self.recipes))
        warnings.warn(
            f"a worker of the engine 'ray' is lost ({type(error).__name__}), and sites {sites} "
            "drop out of this attempt.",
            RuntimeWarning,
            stacklevel=2,
        )


def _raised(error: RayError) -> Exception:
    """Return the worker's error as if it had been raised here."""
    cause: Exception = error.cause if isinstance(error, RayTaskError) else error
    if not isinstance(cause, RayError):
        return cause
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    last = lines[-1].strip().rstrip(".")
    return RunError(
        f"engine 'ray': a worker and this process cannot read one another ({last}); install the "
        "same versions there."
    )
