"""Record of the attempts that a site answered, kept over a restart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from cohortium.plugin import decode, encode
from cohortium_secagg._messages import CompletedStage

if TYPE_CHECKING:
    from cohortium.plugin import Journal
    from cohortium_secagg._protocol_parameters import AttemptLabel


class AnsweredAttempts:
    """Record of a site's part in one run.

    Guarantees:
        Every later `AnsweredAttempts` of the same journal remembers each entry passed to `keep`.
        Secrets are not kept.  After a restart within an attempt, the site takes no further part in
        that attempt.
    """

    def __init__(self, journal: Journal, session: bytes) -> None:
        """Read the journal.

        Raises:
            MessageError: It holds entries of another kind.
        """
        self._journal = journal
        entries = (decode(entry, CompletedStage) for entry in journal.entries())
        done = [(e.attempt, e.round) for e in entries if e.session == session]
        self.latest: tuple[int, int] = max(done, default=(-1, -1))
        """The latest attempt in which the site sent a vector, and its round."""

    def keep(self, scope: AttemptLabel, what: Literal["masked", "unmasked"]) -> None:
        """Make it durable that the site has done `what`, before it replies.

        Raises:
            RefusalError: The entry could not be made durable, so the site must not answer.
        """
        self._journal.append(
            encode(CompletedStage(scope.session, scope.round, scope.attempt, what))
        )
