"""The runs in which a site takes part at present."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define, field

from cohortium.errors import RefusalCode, RefusalError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from cohortium.deployment.participation import Participation
    from cohortium.rounds.site import Site

MAX_ACTIVE_RUNS = 4
"""Most runs that a site takes part in at a time."""

IDLE_TIMEOUT = 3600.0
"""Idle seconds after which another run may take a run's place."""


@define(eq=False)
class ActiveRun:
    """A site's state in one active run.

    Attributes:
        site: The site's side of the run.
        session: Session of the run.
        study: Digest of its study.
        participation: Its record on disk.
        threads: Threads of torch.
        acceptance: The answer to its invitation.
        last_request_at: Time of its last request.
        dataset_id: Name of the images that are charged.
        images_sha256: Hash of the images.
    """

    site: Site
    session: bytes
    study: str
    participation: Participation
    threads: int
    acceptance: bytes
    last_request_at: float
    dataset_id: str
    images_sha256: str


@define(eq=False)
class ActiveRuns:
    """The active runs of a site, by session.

    Guarantees:
        At most `MAX_ACTIVE_RUNS` runs are active. A run is evicted only after `IDLE_TIMEOUT`
        seconds without a request, so one coordinator cannot evict another coordinator's active run.

    Attributes:
        clock: Returns seconds since any fixed moment.
    """

    clock: Callable[[], float]
    _runs: dict[bytes, ActiveRun] = field(factory=dict, init=False)

    @property
    def sessions(self) -> Collection[bytes]:
        """Sessions of the active runs."""
        return self._runs.keys()

    def get(self, session: bytes) -> ActiveRun | None:
        """Return the active run of a session, or None."""
        return self._runs.get(session)

    def add(self, run: ActiveRun) -> None:
        """Add a run, after `make_room`."""
        self._runs[run.session] = run

    def make_room(self) -> None:
        """Remove the run that is idle longest, if all places are taken.

        Raises:
            RefusalError: No run has been idle for `IDLE_TIMEOUT` seconds.
        """
        if len(self._runs) < MAX_ACTIVE_RUNS:
            return
        session, oldest = min(self._runs.items(), key=lambda item: item[1].last_request_at)
        if self.clock() - oldest.last_request_at < IDLE_TIMEOUT:
            raise RefusalError(
                RefusalCode.BUSY, f"the site takes part in {MAX_ACTIVE_RUNS} other runs."
            )
        del self._runs[session]
