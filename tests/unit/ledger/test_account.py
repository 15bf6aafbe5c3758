"""What spends come to together, on which terms, and when a budget ends them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium.data.examples import Examples
from cohortium.errors import LedgerError, RefusalError
from cohortium.ledger.account import Account
from cohortium.ledger.cost import AttemptCost, Budget, MadeAttempts, PlannedAttempts, PrivacyScope
from cohortium.ledger.ledger import Ledger
from cohortium.ledger.report import build_reports
from cohortium.privacy import accounting
from cohortium.privacy.accounting import ORDERS, GaussianMechanism, RenyiBoundedMechanism
from cohortium.privacy.guarantee import Adjacency, ProtectedAgainst, Unit

RUN, OTHER = b"sixteen bytes id", b"another run's id"
EVERYONE = PrivacyScope(unit="example", against="everyone")
CURVE = RenyiBoundedMechanism(name="curve", bounds=tuple(0.01 * order for order in ORDERS))


def cost(
    noise: float = 10.0,
    unit: Unit = "example",
    adjacency: Adjacency = "zero-out",
    against: ProtectedAgainst = "everyone",
    **changes: bool,
) -> AttemptCost:
    mechanism = GaussianMechanism(noise_multiplier=noise)
    return AttemptCost(
        mechanism=mechanism, unit=unit, adjacency=adjacency, against=against, **changes
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger(tmp_path / "ledger.sqlite", is_synced=False)
    made.create()
    return made


def refusal(account: Account, attempt: int, charged: AttemptCost, session: bytes = RUN) -> str:
    with pytest.raises(RefusalError) as error:
        account.charge(session, 0, attempt, charged)
    assert error.value.code == "budget"
    return error.value.reason


def test_account_refuses_overspending_attempt(ledger: Ledger) -> None:
    # ε of four releases with σ = 10 are one with σ = 5.
    (four,) = accounting.compose([(GaussianMechanism(noise_multiplier=5.0), 1)], 1e-5)
    budget = Budget(epsilon=four.epsilon * 1.0001, delta=1e-5, scope=EVERYONE)
    account = Account(ledger, "ours", budget)
    account.check_run(RUN, Counter({cost(): 4}))
    for attempt in range(4):
        account.charge(RUN, attempt, attempt, cost())
    sentence = refusal(account, 4, cost())
    assert sentence == (
        f"the site's budget is ε = {budget.epsilon:g} at δ = 1e-05 for one example against "
        f"everyone; 0.726 is spent, and one more attempt would make it 0.82."
    )
    with ledger.read_transaction() as book:
        assert book.charge_counts("ours") == Counter({cost(): 4})
    Account(ledger, "theirs", budget).charge(RUN, 0, 0, cost())


def test_unaffordable_run_is_refused_at_start(ledger: Ledger) -> None:
    account = Account(ledger, "ours", Budget(epsilon=1.0, delta=1e-5, scope=EVERYONE))
    with pytest.raises(RefusalError, match="0 is spent, and 60 more attempts would make it 3"):
        account.check_run(RUN, Counter({cost(): 60}))
    account.check_run(RUN, Counter({cost(): 5}))
    for attempt in range(3):
        account.charge(RUN, attempt, attempt, cost())
    # It goes on after a restart: what it has spent it need not find again.
    again = Account(ledger, "ours", account.budget)
    again.check_run(RUN, Counter({cost(): 5}))
    with pytest.raises(RefusalError, match="is spent, and 5 more attempts"):
        again.check_run(OTHER, Counter({cost(): 5}))


def test_two_runs_share_one_budget(ledger: Ledger) -> None:
    budget = Budget(epsilon=1.0, delta=1e-5, scope=EVERYONE)
    accounts = {RUN: Account(ledger, "ours", budget), OTHER: Account(ledger, "ours", budget)}
    for session, account in accounts.items():
        account.check_run(session, Counter({cost(): 5}))
    made, codes = 0, set()
    for attempt in range(5):
        for session, account in accounts.items():
            try:
                account.charge(session, attempt, attempt, cost())
                made += 1
            except RefusalError as error:
                codes.add(error.code)
    # Seven releases with σ = 10 come to ε = 0.97, if their number was fixed in advance.
    assert (made, codes) == (6, {"budget"})
    with ledger.read_transaction() as book:
        assert EVERYONE.adaptive_epsilon(book.charge_counts("ours"), budget) <= 1.0


WIDE = Budget(epsilon=6.0, delta=1.9e-4, scope=EVERYONE)


def sampled(noise: float, rate: float = 0.4) -> AttemptCost:
    mechanism = GaussianMechanism(noise_multiplier=noise, sampling_rate=rate)
    return AttemptCost(mechanism=mechanism, against="everyone")


def test_first_run_may_use_the_whole_budget(ledger: Ledger) -> None:
    """By its list alone, of which the ledger then lets nothing else be chosen."""
    plan = Counter({sampled(2.204): 60})
    assert WIDE.holds(plan)
    assert not WIDE.holds_adaptively(plan)
    account = Account(ledger, "ours", WIDE)
    # An invitation alone reserves nothing.
    account.check_run(OTHER, plan)
    account.check_run(RUN, plan)
    account.charge(RUN, 0, 0, sampled(2.204))
    with pytest.raises(RefusalError, match="it is reserved for the plan of a run before"):
        account.check_run(OTHER, Counter({sampled(2.0): 5}))
    with pytest.raises(RefusalError, match="among the 59 that are left of it, with no less noise"):
        account.charge(OTHER, 0, 0, sampled(2.204, 0.41))
    # Attempts that reveal no more than those that are left.
    account.check_run(OTHER, Counter({sampled(3.0, 0.3): 1}))
    account.charge(OTHER, 0, 0, sampled(3.0, 0.3))
    again = Account(ledger, "ours", WIDE)
    with pytest.raises(RefusalError, match="among the 58 that are left"):
        again.check_run(RUN, plan)
    again = Account(ledger, "ours", WIDE)
    for attempt in range(1, 59):
        again.charge(RUN, attempt, attempt, sampled(2.204))
    assert "among the 0 that are left" in refusal(again, 59, sampled(2.204))
    Account(ledger, "theirs", WIDE).charge(OTHER, 0, 0, sampled(2.0))


def test_larger_budget_frees_a_reserved_one(ledger: Ledger) -> None:
    plan = Counter({sampled(2.204): 60})
    account = Account(ledger, "ours", WIDE)
    account.check_run(RUN, plan)
    account.charge(RUN, 0, 0, sampled(2.204))
    larger = Account(ledger, "ours", Budget(epsilon=8.0, delta=1.9e-4, scope=EVERYONE))
    other = Counter({sampled(6.0, 1.0): 1})
    larger.check_run(OTHER, other)
    larger.charge(OTHER, 0, 0, sampled(6.0, 1.0))
    # The reserved list counts as a whole, made or not.
    with pytest.raises(RefusalError, match="it is reserved for the plan of a run before"):
        larger.check_run(b"a third run's id", Counter({sampled(2.2): 20}))
    larger.check_run(RUN, plan)
    larger.charge(RUN, 1, 1, sampled(2.204))


def test_outlook_and_report_state_the_rule_that_counts(ledger: Ledger) -> None:
    account = Account(ledger, "ours", WIDE)
    run = Counter({sampled(2.204): 60})
    alone, twice = account.outlook(run), account.outlook(run, 2)
    assert (alone.before, alone.is_within, twice.is_within) == (0.0, True, False)
    assert alone.after == EVERYONE.epsilon(run, WIDE.delta) < 6.0
    small = Counter({sampled(6.0): 10})
    account.check_run(RUN, small)
    for attempt in range(10):
        account.charge(RUN, attempt, attempt, sampled(6.0))
    after = account.outlook(small)
    assert after.before == EVERYONE.epsilon(small, WIDE.delta)
    assert after.after == EVERYONE.adaptive_epsilon(small + small, WIDE)
    assert after.is_within
    budgets = {"ours": WIDE}
    (one,) = build_reports(ledger, budgets=budgets)
    assert one.adaptive_epsilon is None
    account.charge(OTHER, 0, 0, sampled(6.0))
    (two,) = build_reports(ledger, budgets=budgets)
    assert two.adaptive_epsilon is not None
    assert two.epsilon < two.adaptive_epsilon < 6.0
    assert str(two).endswith("as runs chosen one after another")
    assert two.as_json()["adaptive_epsilon"] == two.adaptive_epsilon


def test_second_study_of_a_session_is_no_plan(ledger: Ledger) -> None:
    """A coordinator names the sessions, and may have seen releases of this one."""
    account = Account(ledger, "ours", WIDE)
    account.check_run(RUN, Counter({sampled(6.0): 10}))
    account.charge(RUN, 0, 0, sampled(6.0))
    plan = Counter({sampled(2.21): 59})
    assert WIDE.holds(plan + Counter({sampled(6.0): 1}))
    again = Account(ledger, "ours", WIDE)
    with pytest.raises(RefusalError, match="would make it"):
        again.check_run(RUN, plan)
    reserved = Account(ledger, "theirs", WIDE)
    reserved.check_run(RUN, Counter({sampled(2.204): 60}))
    reserved.charge(RUN, 0, 0, sampled(2.204))
    # Each list keeps to the budget, and either may be the worse one for the first release.
    for other in (sampled(1.2, 1.0), sampled(0.6, 1e-3)):
        assert WIDE.holds(Counter({sampled(2.204): 1, other: 1}))
        with pytest.raises(RefusalError):
            reserved.charge(RUN, 1, 1, other)


def test_retry_at_a_cheaper_round_is_part_of_the_plan(ledger: Ledger) -> None:
    """Rounds of two costs and two retries, which are planned at the costliest round."""
    dear, cheap = sampled(2.0), sampled(2.5)
    plan = Counter({dear: 22, cheap: 25})
    assert WIDE.holds(plan)
    assert not WIDE.holds_adaptively(plan)
    account = Account(ledger, "ours", WIDE)
    account.check_run(RUN, plan)
    for attempt, each in enumerate([cheap] * 27 + [dear] * 20):
        account.charge(RUN, attempt, attempt, each)
    assert "among the 0 that are left" in refusal(account, 47, dear)


@given(
    first=st.tuples(st.floats(1.0, 6.0), st.sampled_from([0.1, 0.4, 1.0]), st.integers(1, 60)),
    others=st.lists(
        st.tuples(st.floats(0.3, 6.0), st.sampled_from([1e-3, 0.1, 0.4, 1.0]), st.integers(1, 60)),
        min_size=1,
        max_size=3,
    ),
)
@settings(max_examples=25, deadline=None)
def test_account_admits_no_choice_of_lists(
    tmp_path_factory: pytest.TempPathFactory,
    first: tuple[float, float, int],
    others: list[tuple[float, float, int]],
) -> None:
    """Either one run has the budget, or all that was charged fits by the adaptive rule."""
    ledger = Ledger(tmp_path_factory.mktemp("ledger") / "ledger.sqlite", is_synced=False)
    ledger.create()
    account = Account(ledger, "ours", WIDE)
    for number, (noise, rate, times) in enumerate([first, *others]):
        session = bytes([number]) * 16
        try:
            account.check_run(session, Counter({sampled(noise, rate): times}))
            for attempt in range(min(times, 3)):
                account.charge(session, attempt, attempt, sampled(noise, rate))
        except RefusalError:
            continue
    with ledger.read_transaction() as book:
        spent, reserved = book.charge_counts("ours"), book.reservation("ours")
        if reserved is None:
            assert WIDE.holds_adaptively(spent)
        else:
            assert WIDE.holds(reserved.plan)
            assert spent.total() <= reserved.plan.total()
            (planned,) = reserved.plan
            assert all(EVERYONE.dominates(planned, each) for each in spent)


def test_dominated_attempts_have_no_larger_epsilon() -> None:
    most = sampled(2.0, 0.4)
    for noise, rate in ((2.0, 0.4), (2.5, 0.4), (2.0, 0.1), (3.0, 1e-3)):
        assert EVERYONE.dominates(most, sampled(noise, rate))
        less = EVERYONE.epsilon(Counter({sampled(noise, rate): 10}), 1e-5)
        assert less <= EVERYONE.epsilon(Counter({most: 10}), 1e-5)
    curve = AttemptCost(mechanism=CURVE, against="everyone")
    for other in (sampled(1.9, 0.4), sampled(2.0, 0.41), curve):
        assert not EVERYONE.dominates(most, other)
    assert not EVERYONE.dominates(curve, most)


@pytest.mark.parametrize(
    ("terms", "charged", "words"),
    [
        (EVERYONE, AttemptCost(), "releases without any privacy have no bound"),
        (EVERYONE, cost(simulation=True), "noise from a public seed protects nothing"),
        (
            EVERYONE,
            cost(against="coordinator"),
            "a guarantee against the coordinator does not hold against everyone",
        ),
        (
            PrivacyScope(unit="patient", against="everyone"),
            cost(),
            "hiding one example does not hide one patient",
        ),
        (
            PrivacyScope(unit="site", against="coordinator"),
            cost(unit="patient"),
            "hiding one patient does not hide one site",
        ),
        (
            EVERYONE,
            AttemptCost(mechanism=CURVE, unit="site", against="everyone"),
            "the knowledge of one site gives no bound for one example",
        ),
    ],
)
def test_cost_without_bound_for_budget_is_refused(
    ledger: Ledger, terms: PrivacyScope, charged: AttemptCost, words: str
) -> None:
    account = Account(ledger, "ours", Budget(epsilon=1e6, delta=1e-5, scope=terms))
    assert refusal(account, 0, charged).endswith(f"and {words}.")
    with pytest.raises(RefusalError, match=words):
        account.check_run(RUN, Counter({charged: 1}))
    # Where it has been released all the same, nothing more is: nobody can say what is left.
    Account(ledger, "ours").charge(OTHER, 0, 0, charged)
    good = cost(unit=terms.unit)
    assert "the spending before it has no bound" in refusal(account, 0, good)
    assert terms.epsilon(Counter([charged]), 1e-5) == math.inf


# A site's update of norm at most 1, with one example less, is another of norm at most 1: they are
# up to 2 apart.  So site-level noise of σ hides one example like noise of σ/2, unless it was made
# for another update in its place: then σ is already measured by 2.
@pytest.mark.parametrize(
    ("terms", "charged", "noise"),
    [
        (EVERYONE, cost(8.0), 8.0),
        (EVERYONE, cost(8.0, unit="site"), 4.0),
        (EVERYONE, cost(8.0, unit="patient"), 4.0),
        (EVERYONE, cost(8.0, unit="site", adjacency="replace-one"), 8.0),
        (EVERYONE, cost(8.0, adjacency="replace-one"), 8.0),
        (PrivacyScope(unit="site", against="coordinator"), cost(8.0, unit="site"), 8.0),
    ],
)
def test_stronger_guarantee_costs_its_converted_epsilon(
    terms: PrivacyScope, charged: AttemptCost, noise: float
) -> None:
    (expected,) = accounting.compose([(GaussianMechanism(noise_multiplier=noise), 3)], 1e-5)
    assert terms.epsilon(Counter({charged: 3}), 1e-5) == expected.epsilon


def test_example_epsilon_of_site_price_is_tight() -> None:
    # The worst site: its update is +1 with the example and -1 without.  The likelihood ratio of
    # its noised update bounds ε from below, by the exact curve of two normals that are 2 apart.
    sigma, delta = 3.0, 1e-3
    terms = PrivacyScope(unit="example", against="everyone")
    claimed = terms.epsilon(Counter([cost(sigma, unit="site")]), delta)
    from scipy.stats import norm

    def lost(epsilon: float) -> float:
        mu = 2 / sigma
        return float(
            norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)
        )

    assert lost(claimed) == pytest.approx(delta, rel=1e-6)
    naive = PrivacyScope(unit="site", against="everyone").epsilon(
        Counter([cost(sigma, unit="site")]), delta
    )
    assert lost(naive) > 5 * delta


def test_patient_sampling_gives_examples_no_amplification() -> None:
    sampled = AttemptCost(
        mechanism=GaussianMechanism(noise_multiplier=8.0, sampling_rate=0.1, num_releases=5),
        unit="patient",
        against="everyone",
    )
    (expected,) = accounting.compose([(GaussianMechanism(noise_multiplier=4.0), 5)], 1e-5)
    assert EVERYONE.epsilon(Counter([sampled]), 1e-5) == expected.epsilon


UNSAMPLED = st.builds(cost, st.floats(0.5, 100))
CURVES = st.builds(
    lambda slope: AttemptCost(
        mechanism=RenyiBoundedMechanism(
            name="curve", bounds=tuple(slope * order for order in ORDERS)
        ),
        against="everyone",
    ),
    st.floats(0, 1),
)


@given(costs=st.lists(st.one_of(UNSAMPLED, CURVES), max_size=6), data=st.data())
@settings(max_examples=60, deadline=None)
def test_epsilon_ignores_order_and_never_decreases(
    costs: list[AttemptCost], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ledger = Ledger(tmp_path_factory.mktemp("any") / "ledger.sqlite", is_synced=False)
    ledger.create()
    shuffled = data.draw(st.permutations(costs))
    before = 0.0
    for attempt, (one, other) in enumerate(zip(costs, shuffled, strict=True)):
        Account(ledger, "one").charge(RUN, 0, attempt, one)
        Account(ledger, "other").charge(RUN, 0, attempt, other)
        with ledger.read_transaction() as book:
            now = EVERYONE.epsilon(book.charge_counts("one"), 1e-5)
        assert now >= before * (1 - 1e-9)
        before = now
    with ledger.read_transaction() as book:
        assert list(book.charge_counts("one").items()) == list(book.charge_counts("other").items())


@given(times=st.integers(1, 40), noise=st.floats(0.5, 50), epsilon=st.floats(0.1, 20))
@settings(max_examples=60, deadline=None)
def test_within_budget_matches_composed_epsilon(times: int, noise: float, epsilon: float) -> None:
    spends = [(GaussianMechanism(noise_multiplier=noise), times)]
    (spent,) = accounting.compose(spends, 1e-5)
    assert accounting.within_budget(spends, epsilon=epsilon, delta=1e-5) == (
        spent.epsilon <= epsilon
    )


def test_sampled_run_fits_by_quick_or_tight_bound() -> None:
    spends = [(GaussianMechanism(noise_multiplier=4.0, sampling_rate=0.4), 60)]
    (tight,) = accounting.compose(spends, 1e-5)
    for epsilon, expected in ((tight.epsilon * 3, True), (tight.epsilon, True), (1.0, False)):
        assert accounting.within_budget(spends, epsilon=epsilon, delta=1e-5) == expected


def test_fitting_run_is_not_recomputed(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    account = Account(ledger, "ours", Budget(epsilon=1.0, delta=1e-5, scope=EVERYONE))
    account.check_run(RUN, Counter({cost(): 6}))
    calls = []
    bound = accounting.adaptive_epsilon

    def counting(spends: object, **numbers: float) -> float:
        calls.append(spends)
        return bound(spends, **numbers)  # type: ignore[arg-type]

    monkeypatch.setattr(accounting, "adaptive_epsilon", counting)
    for attempt in range(4):
        account.charge(RUN, attempt, attempt, cost())
    assert not calls
    # Nor is it when another run has taken of what was found for this one.
    for attempt in range(2):
        Account(ledger, "ours").charge(OTHER, attempt, attempt, cost())
    assert not calls
    assert "one more attempt would make it 1.0" in refusal(account, 4, cost())


def test_data_that_changed_are_pointed_out_once(ledger: Ledger) -> None:
    def fingerprint(**changes: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> bytes:
        columns: Mapping[str, object] = {
            "images": np.zeros((3, 1, 4, 4), np.uint8),
            "labels": np.zeros(3, np.int64),
            **changes,
        }
        return Examples(**columns).fingerprint  # type: ignore[arg-type]

    account = Account(ledger, "ours")
    assert account.data_changed(fingerprint()) == ""
    assert account.data_changed(fingerprint()) == ""
    changed = [
        fingerprint(labels=np.array([0, 0, 1])),
        fingerprint(patients=np.zeros(3, np.int64)),
        fingerprint(clients=np.zeros(3, np.int64)),
    ]
    assert len({fingerprint(), *changed}) == 4
    for other in changed:
        assert "the data called 'ours' have changed since 2" in account.data_changed(other)
        assert account.data_changed(other) == ""
    assert Account(ledger, "theirs").data_changed(fingerprint()) == ""


def test_missing_ledger_is_refused_not_recreated(tmp_path: Path) -> None:
    account = Account(
        Ledger(tmp_path / "gone.sqlite"), "ours", Budget(epsilon=1.0, delta=1e-5, scope=EVERYONE)
    )
    tries: list[Callable[[], object]] = [
        lambda: account.check_run(RUN, Counter({cost(): 1})),
        lambda: account.charge(RUN, 0, 0, cost()),
    ]
    for attempt in tries:
        with pytest.raises(RefusalError) as error:
            attempt()
        assert error.value.code == "ledger"
        assert isinstance(error.value.__cause__, LedgerError)
    assert not list(tmp_path.iterdir())


@given(
    noises=st.lists(st.sampled_from([1.0, 2.0, 5.0]), min_size=1, max_size=5),
    retries=st.integers(0, 3),
    data=st.data(),
)
@settings(max_examples=100, deadline=None)
def test_covered_attempts_cost_no_more_than_the_planned_ones(
    noises: list[float], retries: int, data: st.DataObject
) -> None:
    rounds = tuple(map(cost, noises))
    planned = PlannedAttempts(rounds, retries)
    made = sorted(data.draw(st.lists(st.integers(0, len(rounds) - 1), max_size=8)))
    costs = Counter(rounds[number] for number in made)
    most = Counter(rounds) + Counter({cost(min(noises)): retries})
    if covers(planned, costs):
        assert EVERYONE.epsilon(costs, 1e-5) <= EVERYONE.epsilon(most, 1e-5) * (1 + 1e-9)
    completed = max(made, default=0)
    reached = planned.reachable_rounds(made, completed)
    assert completed <= reached <= len(rounds)
    for end in range(completed + 1, len(rounds) + 1):
        more = costs + Counter(rounds[completed:end])
        assert covers(planned, more) == (end <= reached)


def covers(planned: PlannedAttempts, costs: Counter[AttemptCost]) -> bool:
    """Return whether a site may make attempts with these costs, in any order."""
    made = MadeAttempts(planned)
    allowed = []
    for number, each in enumerate(costs.elements()):
        allowed.append(made.allows(number, each))
        made.add(number, each)
    return all(allowed)


@given(
    rounds=st.lists(st.integers(0, 2), min_size=1, max_size=5),
    retries=st.integers(0, 2),
    made=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=12),
)
def test_repeated_attempt_counts_once_at_its_last_cost(
    rounds: list[int], retries: int, made: list[tuple[int, int]]
) -> None:
    prices = [cost(noise) for noise in (1.0, 2.0, 5.0)]
    planned = PlannedAttempts(tuple(prices[each] for each in rounds), retries)
    counted, last = MadeAttempts(planned), dict[int, AttemptCost]()
    for number, each in made:
        last[number] = prices[each]
        beyond = (Counter(last.values()) - Counter(planned.rounds)).total()
        assert counted.allows(number, prices[each]) == (beyond <= retries)
        counted.add(number, prices[each])
