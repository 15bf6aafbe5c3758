"""Account of one hospital's data, charged for each attempt before it begins."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from attrs import define, field

from cohortium.errors import LedgerError, RefusalCode, RefusalError
from cohortium.privacy.guarantee import rounded_up

if TYPE_CHECKING:
    from cohortium.ledger.cost import AttemptCost, Budget
    from cohortium.ledger.ledger import Ledger


@define
class Account:
    """Spending of one hospital's data, and its budget.

    Guarantees:
        `charge` returns only when the attempt is in the ledger.
        All that the ledger has for these data is then within the budget, also if several runs
        charge at once.
        A refusal names public figures of the ledger, and neither the data nor the file.

    Attributes:
        ledger: Ledger of the spending.
        data: The hospital's name for the data. Data that share a person share an account.
        budget: The most that may be spent. If None, the account only records spending.
    """

    ledger: Ledger
    data: str
    budget: Budget | None = None
    # Costs that were shown to fit. Any part of them fits, too.
    _known_to_fit: Counter[AttemptCost] = field(factory=Counter, init=False, eq=False, repr=False)

    def check_run(self, session: bytes, costs: Counter[AttemptCost]) -> dict[int, AttemptCost]:
        """Refuse a run whose total cost exceeds the remaining budget.

        The method charges nothing. Without a budget, no cost is too high, and the ledger may not
        exist yet.

        Returns:
            Costs of the attempts of the run that are charged already, by number.

        Args:
            session: Name of the run. After a restart, attempts that are charged already count as
                paid.
            costs: Costs of all attempts.

        Raises:
            RefusalError: The run would overspend, or the ledger cannot be read.
        """
        if self.budget is None and not self.ledger.path.exists():
            return {}
        try:
            with self.ledger.read_transaction() as book:
                spent = book.charge_counts(self.data)
                charged = book.attempts(self.data, session)
        except LedgerError as error:
            raise _unusable() from error
        left = costs - Counter(charged.values())
        if left:
            self._require_room(spent, left)
        return charged

    def charge(self, session: bytes, round_: int, attempt: int, cost: AttemptCost) -> None:
        """Charge an attempt, before anything of it is released.

        An attempt is charged once. A site that charges it again has lost its record of the first
        release. A second release, with other noise, would be another spend. In a simulation with a
        public seed, it would be the same release, which costs nothing more.

        Args:
            session: Name of the run.
            round_: Number of the round, from 0.
            attempt: Number of the attempt, from 0 over the run.
            cost: Cost of the attempt.

        Raises:
            RefusalError: The attempt would overspend, was charged before, or cannot be recorded. It
                must not continue.
        """
        try:
            with self.ledger.write_transaction() as book:
                is_charged = book.is_charged(self.data, session, attempt)
                if is_charged and cost.simulation:
                    return
                if is_charged:
                    raise RefusalError(
                        RefusalCode.OUT_OF_ORDER,
                        "this attempt has been charged before; it may have been released.",
                    )
                self._require_room(book.charge_counts(self.data), Counter({cost: 1}))
                book.add_charge(self.data, session, attempt, round_, cost)
        except LedgerError as error:
            raise _unusable() from error

    def data_changed(self, fingerprint: bytes) -> str:
        """Return a warning for the hospital if the data have changed.

        Otherwise, the result is empty.

        Args:
            fingerprint: Fingerprint of the present data. The ledger stores it with their name.

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

    def _require_room(self, spent: Counter[AttemptCost], more: Counter[AttemptCost]) -> None:
        """Refuse further attempts if they do not fit."""
        if self.budget is None:
            return
        wanted = spent + more
        if wanted <= self._known_to_fit:
            return
        if not self.budget.holds(wanted):
            raise RefusalError(RefusalCode.BUDGET, self._overspending(spent, more))
        self._known_to_fit = wanted

    def _overspending(self, spent: Counter[AttemptCost], more: Counter[AttemptCost]) -> str:
        budget, times = self.budget, more.total()
        assert budget is not None
        objection = next(filter(None, map(budget.scope.incompatibility, more)), "")
        if objection:
            return f"the site's budget is {budget}, and {objection}."
        before = budget.scope.epsilon(spent, budget.delta)
        if before == float("inf"):
            return f"the site's budget is {budget}, and the spending before it has no bound."
        after = budget.scope.epsilon(spent + more, budget.delta)
        asked = "one more attempt" if times == 1 else f"{times:,} more attempts"
        return (
            f"the site's budget is {budget}; {rounded_up(before)} is spent, and {asked} would make "
            f"it {rounded_up(after)}."
        )


def _unusable() -> RefusalError:
    """Return the refusal for the coordinator.

    It reveals neither the ledger's path nor its fault.
    """
    return RefusalError(
        RefusalCode.LEDGER, "the site's ledger cannot be used, so nothing is released."
    )
