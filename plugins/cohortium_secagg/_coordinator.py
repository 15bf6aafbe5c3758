"""The coordinator's session: it passes keys and sealed shares on, and sums masked vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohortium.plugin import MessageError, StageRequests, TooFewSitesError
from cohortium_secagg._attempt import Attempt, Failed, Finished
from cohortium_secagg._keys import KEY_BYTES, KeyPair
from cohortium_secagg._stages import Setup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cohortium.plugin import Randomness, RingSum, SiteId
    from cohortium_secagg._attempt import Stage
    from cohortium_secagg._rules import ProtocolParameters


class SecAggCoordinator:
    """Drives one attempt after another through its stages.

    Guarantees:
        It holds one running total, and beside it memory in proportion to sites times neighbours.
        A site's first reply to a request is the only one: if it is malformed, the site has
        dropped out; of shares among which are wrong ones, the others are kept.
    """

    def __init__(self, protocol: ProtocolParameters, secret: Randomness, *, threads: int) -> None:
        """Take the run's rules, the source of its random graphs and keys, and its threads."""
        self._protocol = protocol
        self._secret = secret
        self._threads = threads
        self._stage: Stage = Failed("no attempt has been opened.")
        self._waiting: set[SiteId] = set()

    def begin_attempt(self, round: int, attempt: int, sites: Sequence[SiteId]) -> None:  # noqa: A002 - the contract's name
        """Begin an attempt among `sites`, forgetting any earlier one."""
        scope = self._protocol.scope(round, attempt)
        shuffle = self._secret.stream("graph", round, attempt)
        mac_key = KeyPair(self._secret.secret_bytes(KEY_BYTES, "tagging", round, attempt))
        asked = frozenset(sites)
        self._stage = Setup(Attempt(self._protocol, scope, asked, shuffle, mac_key, self._threads))
        self._waiting = set()

    def next_requests(self) -> StageRequests:
        """What to send now; sites that have not replied to what was sent before have dropped."""
        try:
            self._stage, requests = self._stage.close()
        except TooFewSitesError as error:
            self._stage, requests = Failed(str(error)), StageRequests()
        self._waiting = set(requests.per_site)
        return requests

    def receive(self, site: SiteId, reply: bytes) -> None:
        """Take in one site's reply.

        Raises:
            MessageError: It is malformed, or nothing is asked of this site any more.
        """
        if site not in self._waiting:
            raise MessageError(f"nothing is asked of site {site} now.")
        self._waiting.discard(site)
        self._stage.accept(site, reply)

    def sum(self) -> RingSum:
        """The exact sum over the contributors.

        Raises:
            TooFewSitesError: Too few sites answered at some stage; nothing was released.
        """
        if isinstance(self._stage, Finished):
            return self._stage.total
        if isinstance(self._stage, Failed):
            raise TooFewSitesError(self._stage.reason)
        raise TooFewSitesError("the attempt is not over: there is more to ask.")
