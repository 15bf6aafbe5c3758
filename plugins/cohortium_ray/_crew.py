"""One worker and its sites, as the driver sees them."""

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
"""What Ray says of a worker that is gone, or of a reply that is gone with its machine."""

AT_ONCE = 16
"""Sites that a worker is handed at once where no clock is running: fewer, longer trips."""


@define(eq=False)
class WorkerProxy:
    """A worker and the sites that are dealt to it for the run.

    Attributes:
        recipes: Of its sites.
        options: With which Ray starts the worker.
        threads: Of torch, in it.
        waiting: Sites that are still to be asked in this exchange, and their own parts.
        handed: The site or sites that it is answering for; none when what it does is not of this
            exchange.
        due: When what it does is late.
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
        """A reference to what the worker is doing, if it is."""
        return self._busy

    def start(self) -> None:
        """Start a worker, if there is none, and have it make the sites."""
        if self._worker is None:
            self._worker = ray.remote(Worker).options(**self.options).remote(self.threads, sys.path)
            self._busy = self._worker.open.remote(dict(self.recipes))

    def submit(self, exchange: int, broadcast: Any, *, most: int) -> None:
        """Ask the next sites that are waiting, at `most` so many."""
        each = dict(itertools.islice(self.waiting.items(), most))
        self.handed = tuple(each)
        # In a list the reference goes as it is: the worker fetches once what it stands for.
        self._busy = self._worker.answer.remote(exchange, [broadcast], each)

    def result(self) -> list[tuple[SiteId, bytes]]:
        """Wait for what the worker does, and return the replies to this exchange.

        If the worker has died there are none, and no site of it is waiting any more.

        Raises:
            RunError: What is sent to the worker, or what it raises, cannot be read.
            Exception: What a site raised: it cannot be made, or there is a fault in a plugin.
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
        """Leave out those that are late: who was handed a request, or all who wait for a turn."""
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
    """What was raised at the worker, as if it had been here."""
    cause: Exception = error.cause if isinstance(error, RayTaskError) else error
    if not isinstance(cause, RayError):
        return cause
    last = str(cause).strip().splitlines()[-1].strip().rstrip(".")
    return RunError(
        f"engine 'ray': a worker and this process cannot read one another ({last}); install there "
        "what is installed here."
    )
