"""Account of one hospital's data, charged for each attempt before it begins."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from cohortium.errors import LedgerError, RefusalCode, RefusalError
from cohortium.ledger.cost import PrivacyScope
from cohortium.ledger.ledger import Reservation
from cohortium.privacy.guarantee import rounded_up

if TYPE_CHECKING:
    from cohortium.ledger.cost import AttemptCost, Budget
    from cohortium.ledger.ledger import Ledger, LedgerTransaction

DELTA = 1e-5
"""δ of an ε without a budget."""

FIXED, ADAPTIVE = "fixed", "adaptive"
"""The two rules: a list of attempts that was fixed in advance, and attempts that were not."""

_NEW = b""
"""Session of a run that has not begun."""


@frozen(kw_only=True)
class Outlook:
    """Privacy spent of some data, before and after runs that have not begun.

    Attributes:
        before: ε that is spent, or infinity if a part has no bound.
        after: ε after the runs, or infinity.
        scope: Unit and adversary of both.
        is_within: Whether the runs fit the budget.
    """

    before: float
    after: float
    scope: PrivacyScope
    is_within: bool


@define
class Account:
    """Spending of one hospital's data, and its budget.

    A coordinator chooses each run, and may have seen the releases of the runs before. So there are
    two rules, and the first charged attempt decides which of them holds for good:

    - *A run alone.* Its attempts were fixed before the first release of these data. Their list is
      within the budget (`Budget.holds`), though not by the second rule. The ledger reserves the
      budget for this list. Later runs fit if the list as a whole and they fit by the second rule.
      Or they fit if all attempts ever made reveal no more than the list.
    - *Runs one after another.* All attempts stay within the budget, however they were chosen
      (`Budget.holds_adaptively`). That bound is larger.

    Guarantees:
        `charge` returns only when the attempt is in the ledger.
        All that the ledger has for these data is then within the budget, also if several runs
        charge at once. It is so even if each study was chosen by the releases before. The budget
        itself must not be.
        A refusal names public figures of the ledger, and neither the data nor the file.

    Attributes:
        ledger: Ledger of the spending.
        data: The hospital's name for the data. Data that share a person share an account.
        budget: The most that may be spent. If None, the account only records spending.
    """

    ledger: Ledger
    data: str
    budget: Budget | None = None
    # Costs of all attempts of each run that was checked.
    _plans: dict[bytes, Counter[AttemptCost]] = field(
        factory=dict, init=False, eq=False, repr=False
    )
    # Costs that were shown to fit, by rule. Any part of them fits, too.
    _known_to_fit: dict[str, Counter[AttemptCost]] = field(
        factory=dict, init=False, eq=False, repr=False
    )

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
        self._plans[session] = Counter(costs)
        try:
            with self.ledger.read_transaction() as book:
                charged = book.attempts(self.data, session)
                left = costs - Counter(charged.values())
                if left:
                    self._admit(book, session, left)
        except LedgerError as error:
            raise _unusable() from error
        return charged

    def charge(self, session: bytes, round_: int, attempt: int, cost: AttemptCost) -> None:
        """Charge an attempt, before anything of it is released.

        An attempt is charged once. A site that charges it again has lost its record of the first
        release. A second release, with other noise, would be another spend. In a simulation with a
        public seed, it would be the same release, which costs nothing more.

        Args:
            session: Name of the run. If `check_run` has not seen it, its attempts count as chosen
                one after another.
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
                reservation = self._admit(book, session, Counter({cost: 1}))
                if reservation is not None:
                    book.add_reservation(self.data, reservation)
                book.add_charge(self.data, session, attempt, round_, cost)
        except LedgerError as error:
            raise _unusable() from error

    def outlook(self, costs: Counter[AttemptCost], runs: int = 1) -> Outlook:
        """Return the spending before and after further runs.

        Args:
            costs: Costs of all attempts of one of the runs.
            runs: Number of the runs.

        Raises:
            LedgerError: The ledger cannot be used.
        """
        more = Counter({cost: runs * times for cost, times in costs.items()})
        self._plans[_NEW] = Counter(costs)
        with self.ledger.read_transaction() as book:
            spent = book.charge_counts(self.data)
            num_runs = len({run.session for run in book.runs(self.data)})
            try:
                self._admit(book, _NEW, more)
            except RefusalError:
                is_within = False
            else:
                is_within = True
        return Outlook(
            before=self._bound(spent, spent + more, is_alone=num_runs <= 1),
            after=self._bound(spent + more, spent + more, is_alone=num_runs + runs <= 1),
            scope=self._scope(spent + more),
            is_within=is_within,
        )

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

    def _admit(
        self, book: LedgerTransaction, session: bytes, more: Counter[AttemptCost]
    ) -> Reservation | None:
        """Refuse further attempts of a run if they do not fit.

        Returns:
            The reservation that the first of them needs, or None.
        """
        if self.budget is None:
            return None
        spent, reserved = book.charge_counts(self.data), book.reservation(self.data)
        made = book.charge_counts(self.data, session) + more
        is_alone = made == spent + more
        if reserved is not None:
            if not self._fits_beside(book, reserved, session, more):
                raise self._overspending(spent, more, is_alone=is_alone, reserved=reserved)
            return None
        plan = self._plans.get(session, Counter())
        if self._fits(ADAPTIVE, spent + more if spent else plan | more):
            return None
        # Only before the first release: a coordinator may begin another study in the same session.
        if not spent and self._is_part(plan, more):
            return Reservation(session, plan)
        raise self._overspending(spent, more, is_alone=is_alone)

    def _fits_beside(
        self,
        book: LedgerTransaction,
        reserved: Reservation,
        session: bytes,
        more: Counter[AttemptCost],
    ) -> bool:
        """Return whether attempts fit where the budget is reserved for a run."""
        spent, first = (book.charge_counts(self.data, s) for s in (None, reserved.session))
        if self._is_part(reserved.plan, spent + more):
            return True
        others = spent - first
        if session == reserved.session:
            return self._fits(ADAPTIVE, (reserved.plan | (first + more)) + others)
        return self._fits(ADAPTIVE, (reserved.plan | first) + others + more)

    def _is_part(self, plan: Counter[AttemptCost], made: Counter[AttemptCost]) -> bool:
        """Return whether attempts reveal no more than a planned list, which fits the budget.

        An attempt beyond the planned ones of its cost takes the place of one that was not made, and
        reveals no more than that.
        """
        assert self.budget is not None
        scope, beyond, left = self.budget.scope, made - plan, plan - made
        return (
            self._fits(FIXED, plan)
            and made.total() <= plan.total()
            and (
                not beyond
                or any(
                    times >= beyond.total() and all(scope.dominates(cost, one) for one in beyond)
                    for cost, times in left.items()
                )
            )
        )

    def _fits(self, rule: str, wanted: Counter[AttemptCost]) -> bool:
        """Return whether attempts fit by a rule."""
        assert self.budget is not None
        if wanted <= self._known_to_fit.get(rule, Counter()):
            return True
        holds = self.budget.holds if rule == FIXED else self.budget.holds_adaptively
        if not holds(wanted):
            return False
        self._known_to_fit[rule] = wanted
        return True

    def _scope(self, costs: Counter[AttemptCost]) -> PrivacyScope:
        return PrivacyScope.of(costs) if self.budget is None else self.budget.scope

    def _bound(
        self, costs: Counter[AttemptCost], whole: Counter[AttemptCost], *, is_alone: bool
    ) -> float:
        """Return ε of `costs`, in the scope of the `whole` spending.

        A limit that was fixed in advance is necessary for runs that were chosen one after another.
        So without a budget, ε is that of a list.
        """
        budget, scope = self.budget, self._scope(whole)
        if budget is None or is_alone:
            return scope.epsilon(costs, DELTA if budget is None else budget.delta)
        return scope.adaptive_epsilon(costs, budget)

    def _overspending(
        self,
        spent: Counter[AttemptCost],
        more: Counter[AttemptCost],
        *,
        is_alone: bool,
        reserved: Reservation | None = None,
    ) -> RefusalError:
        """Return the refusal of attempts, with ε by the rule that they would break."""
        budget, times = self.budget, more.total()
        assert budget is not None
        before = self._bound(spent, spent, is_alone=is_alone)
        after = self._bound(spent + more, spent, is_alone=is_alone)
        asked = "one more attempt" if times == 1 else f"{times:,} more attempts"
        objection = next(filter(None, map(budget.scope.incompatibility, more)), "")
        if objection:
            fault = f", and {objection}."
        elif before == float("inf"):
            fault = ", and the spending before it has no bound."
        elif reserved is not None and (not is_alone or after <= budget.epsilon):
            left = max(0, reserved.plan.total() - spent.total())
            fault = (
                f", and it is reserved for the plan of a run before; {asked} fit only if they are "
                f"among the {left:,} that are left of it, with no less noise and no larger "
                "sampling rate."
            )
        else:
            chosen = "" if is_alone else ", as runs were chosen one after another"
            fault = (
                f"; {rounded_up(before)} is spent, and {asked} would make it "
                f"{rounded_up(after)}{chosen}."
            )
        return RefusalError(RefusalCode.BUDGET, f"the site's budget is {budget}{fault}")


def _unusable() -> RefusalError:
    """Return the refusal for the coordinator.

    It reveals neither the ledger's path nor its fault.
    """
    return RefusalError(
        RefusalCode.LEDGER, "the site's ledger cannot be used, so nothing is released."
    )
