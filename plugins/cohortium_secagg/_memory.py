"""What a site's session remembers over a restart: which attempts it has answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from cohortium.plugin import decode, encode
from cohortium_secagg._messages import CompletedStage

if TYPE_CHECKING:
    from cohortium.plugin import Journal
    from cohortium_secagg._rules import AttemptLabel


class AnsweredAttempts:
    """A site's part in one run.

    Guarantees:
        What `keep` was told of is remembered by every later `AnsweredAttempts` of the same journal.
        Secrets are not kept: an attempt that was cut short by a restart is over for the site.
    """

    def __init__(self, journal: Journal, session: bytes) -> None:
        """Read the journal.

        Raises:
            MessageError: It holds entries of something else.
        """
        self._journal = journal
        entries = (decode(entry, CompletedStage) for entry in journal.entries())
        done = [(e.attempt, e.round) for e in entries if e.session == session]
        self.latest: tuple[int, int] = max(done, default=(-1, -1))
        """The latest attempt in which a vector was sent, and its round."""

    def keep(self, scope: AttemptLabel, what: Literal["masked", "unmasked"]) -> None:
        """Make it durable that the site has done `what`, before anyone can see it.

        Raises:
            RefusalError: It could not be made durable; the site must not answer.
        """
        self._journal.append(
            encode(CompletedStage(scope.session, scope.round, scope.attempt, what))
        )
