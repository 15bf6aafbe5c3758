"""One hospital's data and what may be spent of them: each attempt is charged before it begins."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from attrs import define, field

from cohortium.errors import LedgerError, RefusalError
from cohortium.privacy.guarantee import rounded_up

if TYPE_CHECKING:
    from cohortium.ledger.cost import AttemptCost, Budget
    from cohortium.ledger.ledger import Ledger


@define
class Account:
    """What was spent of one hospital's data, and what may be.

    Guarantees:
        `charge` returns only when the attempt stands in the ledger, and all that stands there for
        these data is within the budget: also where several runs charge at once.
        A refusal names public figures of the ledger, and neither the data nor the file.

    Attributes:
        ledger: Where it stands.
        data: What the hospital calls the data.  Data that share a person share an account.
        budget: What may be spent; None where all is only written down.
    """

    ledger: Ledger
    data: str
    budget: Budget | None = None
    # What was shown to fit; so does whatever is part of it.
    _known_to_fit: Counter[AttemptCost] = field(factory=Counter, init=False, eq=False, repr=False)

    def check_run(self, session: bytes, cost: AttemptCost, attempts: int) -> None:
        """Refuse a run that could not be paid to its end, as things stand; charge nothing.

        Without a budget there is nothing to refuse, and the ledger need not be there yet.

        Args:
            session: Names the run; of one that goes on after a restart, what is charged counts.
            cost: Of one attempt.
            attempts: The most that there will be.

        Raises:
            RefusalError: It would overspend, or the ledger cannot be read.
        """
        if self.budget is None:
            return
        try:
            with self.ledger.read_transaction() as book:
                spent = book.charge_counts(self.data)
                charged = book.attempts(self.data, session)
        except LedgerError as error:
            raise _unusable() from error
        left = attempts - len(charged)
        if left > 0:
            self._require_room(spent, cost, left)

    def charge(self, session: bytes, round_: int, attempt: int, cost: AttemptCost) -> None:
        """Write down an attempt, before anything of it is released.

        An attempt is charged once.  Whoever asks to charge it again has forgotten what it sent,
        and a second release, with other noise, would be another spend.  In a simulation with a
        public seed it would be the same release: that costs nothing more.

        Args:
            session: Names the run.
            round_: From 0.
            attempt: From 0 over the run.
            cost: What it costs.

        Raises:
            RefusalError: It would overspend, was charged before, or cannot be written down; it
                must not go on.
        """
        try:
            with self.ledger.write_transaction() as book:
                is_charged = book.is_charged(self.data, session, attempt)
                if is_charged and cost.simulation:
                    return
                if is_charged:
                    raise RefusalError(
                        "out-of-order",
                        "this attempt has been charged before; it may have been released.",
                    )
                self._require_room(book.charge_counts(self.data), cost, 1)
                book.add_charge(self.data, session, attempt, round_, cost)
        except LedgerError as error:
            raise _unusable() from error

    def data_changed(self, fingerprint: bytes) -> str:
        """Whether the data are not what they were: one sentence for the hospital, or none.

        Args:
            fingerprint: Of the data as they are now; kept in the ledger, beside their name.

        Raises:
            LedgerError: The ledger cannot be used.
        """
        with self.ledger.write_transaction() as book:
            known = book.fingerprint(self.data)
            if known is not None and known[0] == fingerprint:
                return ""
            book.record_fingerprint(self.data, fingerprint)
        if known is None:
            return ""
        return (
            f"the data called '{self.data}' have changed since {known[1]}; images that were there "
            "before stay on this account, and only data of other people may have another name."
        )

    def _require_room(self, spent: Counter[AttemptCost], cost: AttemptCost, times: int) -> None:
        """Refuse `times` attempts at `cost` beyond what is spent, if they do not fit."""
        if self.budget is None:
            return
        wanted = spent + Counter({cost: times})
        if wanted <= self._known_to_fit:
            return
        if not self.budget.holds(wanted):
            raise RefusalError("budget", self._overspending(spent, cost, wanted, times))
        self._known_to_fit = wanted

    def _overspending(
        self,
        spent: Counter[AttemptCost],
        cost: AttemptCost,
        wanted: Counter[AttemptCost],
        times: int,
    ) -> str:
        budget = self.budget
        assert budget is not None
        objection = budget.scope.incompatibility(cost)
        if objection:
            return f"the site's budget is {budget}, and {objection}."
        before = budget.scope.epsilon(spent, budget.delta)
        if before == float("inf"):
            return f"the site's budget is {budget}, and what was spent before has no bound."
        after = budget.scope.epsilon(wanted, budget.delta)
        more = "one more attempt" if times == 1 else f"{times:,} more attempts"
        return (
            f"the site's budget is {budget}; {rounded_up(before)} is spent, and {more} would make "
            f"it {rounded_up(after)}."
        )


def _unusable() -> RefusalError:
    """For the coordinator, who is told neither where the ledger lies nor what ails it."""
    return RefusalError("ledger", "the site's ledger cannot be used, so nothing is released.")
