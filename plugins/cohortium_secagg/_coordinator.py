"""The coordinator's session: it forwards keys and shares, and sums masked vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohortium.plugin import MessageError, StageRequests, TooFewSitesError
from cohortium_secagg._attempt import Attempt, Failed, Finished
from cohortium_secagg._stages import Setup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cohortium.plugin import Randomness, RingSum, SiteId
    from cohortium_secagg._attempt import Stage
    from cohortium_secagg._protocol_parameters import ProtocolParameters


class SecAggCoordinator:
    """Session that takes one attempt after another through its stages.

    Guarantees:
        The session holds one running total, and otherwise memory in proportion to sites times
        neighbours.
        Only a site's first reply to a request counts.  If it is malformed, the site has dropped
        out.  If some shares in a reply are wrong, the others are kept.
        Keys and shares that came with one attempt serve the next one alone.  It must follow at
        once, at the next round, among the same sites, and no site's shares may be missing.
    """

    def __init__(self, protocol: ProtocolParameters, secret: Randomness, *, threads: int) -> None:
        """Take the run's parameters, the source of its secrets, and its threads."""
        self._protocol = protocol
        self._secret = secret
        self._threads = threads
        self._stage: Stage = Failed("no attempt has been opened.")
        self._waiting: set[SiteId] = set()

    def begin_attempt(self, round: int, attempt: int, sites: Sequence[SiteId]) -> None:  # noqa: A002 - the contract's name
        """Begin an attempt among `sites`, and forget any earlier one."""
        scope, asked = self._protocol.scope(round, attempt), frozenset(sites)
        prepared = self._stage.prepared if isinstance(self._stage, Finished) else None
        if prepared is not None and prepared.is_complete(scope, asked):
            self._stage = prepared
        else:
            self._stage = Setup(
                Attempt.fresh(self._protocol, scope, asked, self._secret, threads=self._threads)
            )
        self._waiting = set()

    def next_requests(self) -> StageRequests:
        """Return the next requests.

        A site that has not replied to its last request has dropped out.
        """
        try:
            self._stage, requests = self._stage.close()
        except TooFewSitesError as error:
            self._stage, requests = Failed(str(error)), StageRequests()
        self._waiting = set(requests.per_site)
        return requests

    def receive(self, site: SiteId, reply: bytes) -> None:
        """Take in one site's reply.

        Raises:
            MessageError: The reply is malformed, or nothing more is asked of this site.
        """
        if site not in self._waiting:
            raise MessageError(f"nothing is asked of site {site} now.")
        self._waiting.discard(site)
        self._stage.accept(site, reply)

    def sum(self) -> RingSum:
        """Return the exact sum over the contributors.

        Raises:
            TooFewSitesError: Too few sites answered at some stage.  Nothing was released.
        """
        if isinstance(self._stage, Finished):
            return self._stage.total
        if isinstance(self._stage, Failed):
            raise TooFewSitesError(self._stage.reason)
        raise TooFewSitesError("the attempt is not over: there is more to ask.")
