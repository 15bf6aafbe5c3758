"""One hospital's data and what may be spent of them: each attempt is charged before it begins."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec
from attrs import define, field, frozen
from attrs.validators import gt, in_, lt

from cohortium import accounting
from cohortium.errors import LedgerError, RefusalError
from cohortium.guarantee import Against, Unit, rounded_up

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cohortium.accounting import Mechanism
    from cohortium.ledger import Ledger, Price

UNITS: tuple[Unit, ...] = ("example", "patient", "site")
"""From the weakest protection to the strongest: all that one unit holds, the next holds too."""

PARTIES: tuple[Against, ...] = ("coordinator", "everyone")
"""Likewise: whoever is everyone includes those that see sums alone."""


@frozen(kw_only=True)
class Terms:
    """What an ε is said of.

    Attributes:
        unit: What is protected.
        against: From whom.
    """

    unit: Unit = field(validator=in_(UNITS))
    against: Against = field(validator=in_(PARTIES))

    @classmethod
    def of(cls, prices: Mapping[Price, int]) -> Terms:
        """The strongest terms that hold for all of `prices`."""
        return cls(
            unit=min((p.unit for p in prices), key=UNITS.index, default="site"),
            against=min((p.against for p in prices), key=PARTIES.index, default="everyone"),
        )

    def counted(self, price: Price) -> Mechanism | None:
        """The mechanism of `price` as it counts on these terms; None if it has no bound on them.

        Neighbours are those of the ledger: one unit is there, or counts as zero.

        *Replace-one* mechanisms count as they are.  Their noise is measured by a sensitivity that
        is twice as large, and a unit that is set to zero is one that is replaced.  And whoever
        takes one image out of a hospital replaces the hospital's contribution by another.

        *Zero-out of a larger unit* is not zero-out of a part of it: with one image less a
        hospital's contribution is not gone, but another.  It moves by up to twice its bound, so
        that the noise counts as half.  Sampling, the same on either side, is not credited:
        mixtures with equal weights are no further apart than what is mixed.
        """
        mechanism = price.mechanism
        if mechanism is None or self.objection(price):
            return None
        if price.unit == self.unit or price.adjacency == "replace-one":
            return mechanism
        if not isinstance(mechanism, accounting.Gaussian):
            return None
        half = mechanism.noise_multiplier / 2
        return msgspec.structs.replace(mechanism, noise_multiplier=half, sampling_rate=1.0)

    def objection(self, price: Price) -> str:
        """Why `price` has no bound on these terms, as the end of a sentence; empty if it has."""
        if price.mechanism is None:
            return "releases without any privacy have no bound"
        if price.simulation:
            return "noise from a public seed protects nothing"
        if UNITS.index(price.unit) < UNITS.index(self.unit):
            return f"hiding one {price.unit} does not hide one {self.unit}"
        if PARTIES.index(price.against) < PARTIES.index(self.against):
            return "what holds against the coordinator does not hold against everyone"
        inside = price.unit != self.unit and price.adjacency != "replace-one"
        if inside and not isinstance(price.mechanism, accounting.Gaussian):
            return f"what is known of one {price.unit} gives no bound for one {self.unit}"
        return ""

    def mechanisms(self, prices: Mapping[Price, int]) -> list[tuple[Mechanism, int]] | None:
        """All of `prices` as they count, for `accounting`; None if one of them has no bound."""
        counted = [(self.counted(price), times) for price, times in prices.items()]
        found = [(mechanism, times) for mechanism, times in counted if mechanism is not None]
        return found if len(found) == len(counted) else None

    def epsilon(self, prices: Mapping[Price, int], delta: float) -> float:
        """ε at `delta` of all of `prices` together; infinity where there is no bound."""
        mechanisms = self.mechanisms(prices)
        if mechanisms is None:
            return float("inf")
        (spent,) = accounting.compose(mechanisms, delta)
        return spent.epsilon

    def __str__(self) -> str:
        whom = "everyone" if self.against == "everyone" else "the coordinator"
        return f"one {self.unit} against {whom}"


@frozen(kw_only=True)
class Budget:
    """The most that may be spent of some data, over all runs there will ever be.

    Attributes:
        epsilon: ε.
        delta: δ at which it is meant.
        terms: What it is said of.
    """

    epsilon: float = field(validator=gt(0))
    delta: float = field(validator=[gt(0), lt(1)])
    terms: Terms

    def holds(self, prices: Mapping[Price, int]) -> bool:
        """Whether all of `prices` together stay within."""
        mechanisms = self.terms.mechanisms(prices)
        return mechanisms is not None and accounting.fits(
            mechanisms, epsilon=self.epsilon, delta=self.delta
        )

    def __str__(self) -> str:
        return f"ε = {self.epsilon:g} at δ = {self.delta:g} for {self.terms}"


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
    _proven: Counter[Price] = field(factory=Counter, init=False, eq=False, repr=False)

    def admit(self, session: bytes, price: Price, attempts: int) -> None:
        """Refuse a run that could not be paid to its end, as things stand; charge nothing.

        Args:
            session: Names the run; of one that goes on after a restart, what is charged counts.
            price: Of one attempt.
            attempts: The most that there will be.

        Raises:
            RefusalError: It would overspend, or the ledger cannot be read.
        """
        try:
            with self.ledger.reading() as book:
                spent = book.prices(self.data)
                charged = book.attempts(self.data, session)
        except LedgerError as error:
            raise _unusable() from error
        left = attempts - len(charged)
        if left > 0:
            self._require_room(spent, price, left)

    def charge(self, session: bytes, round_: int, attempt: int, price: Price) -> None:
        """Write down an attempt, before anything of it is released.

        An attempt is charged once.  Whoever asks to charge it again has forgotten what it sent,
        and a second release, with other noise, would be another spend.

        Args:
            session: Names the run.
            round_: From 0.
            attempt: From 0 over the run.
            price: What it costs.

        Raises:
            RefusalError: It would overspend, was charged before, or cannot be written down; it
                must not go on.
        """
        try:
            with self.ledger.writing() as book:
                if book.is_charged(self.data, session, attempt):
                    raise RefusalError(
                        "order", "this attempt has been charged before; it may have been released."
                    )
                self._require_room(book.prices(self.data), price, 1)
                book.insert(self.data, session, attempt, round_, price)
        except LedgerError as error:
            raise _unusable() from error

    def drift(self, fingerprint: bytes) -> str:
        """Whether the data are not what they were: one sentence for the hospital, or none.

        Args:
            fingerprint: Of the data as they are now; kept in the ledger, beside their name.

        Raises:
            LedgerError: The ledger cannot be used.
        """
        with self.ledger.writing() as book:
            known = book.fingerprint(self.data)
            if known is not None and known[0] == fingerprint:
                return ""
            book.note_fingerprint(self.data, fingerprint)
        if known is None:
            return ""
        return (
            f"the data called '{self.data}' have changed since {known[1]}; images that were there "
            "before stay on this account, and only data of other people may have another name."
        )

    def _require_room(self, spent: Counter[Price], price: Price, times: int) -> None:
        """Refuse `times` attempts at `price` beyond what is spent, if they do not fit."""
        if self.budget is None:
            return
        wanted = spent + Counter({price: times})
        if wanted <= self._proven:
            return
        if not self.budget.holds(wanted):
            raise RefusalError("budget", self._excess(spent, price, wanted, times))
        self._proven = wanted

    def _excess(
        self, spent: Counter[Price], price: Price, wanted: Counter[Price], times: int
    ) -> str:
        budget = self.budget
        assert budget is not None
        objection = budget.terms.objection(price)
        if objection:
            return f"the site's budget is {budget}, and {objection}."
        before = budget.terms.epsilon(spent, budget.delta)
        if before == float("inf"):
            return f"the site's budget is {budget}, and what was spent before has no bound."
        after = budget.terms.epsilon(wanted, budget.delta)
        more = "one more attempt" if times == 1 else f"{times:,} more attempts"
        return (
            f"the site's budget is {budget}; {rounded_up(before)} is spent, and {more} would make "
            f"it {rounded_up(after)}."
        )


def _unusable() -> RefusalError:
    """For the coordinator, who is told neither where the ledger lies nor what ails it."""
    return RefusalError("ledger", "the site's ledger cannot be used, so nothing is released.")
