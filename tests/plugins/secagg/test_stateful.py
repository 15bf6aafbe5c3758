"""A network that drops, delays, repeats, exchanges and damages messages, as it likes.

What must hold whatever it does is said in `network`; here is what it does.

    pytest -n0 tests/plugins/secagg/test_stateful.py -k machine --hypothesis-profile=long

searches for longer, and anew each time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from operator import or_
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, event, given, reject, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cohortium.messages import codec
from cohortium.messages.codec import MAGIC
from cohortium.plugin import MemoryJournal, Ring, StageRequests, StudyError
from cohortium_secagg import SecAgg, _stages
from cohortium_secagg._attempt import Finished, MaskingGraph
from cohortium_secagg._consistency_check import Confirmed
from cohortium_secagg._coordinator import SecAggCoordinator
from cohortium_secagg._protocol_parameters import AttemptLabel
from cohortium_secagg._site import DUE, SecAggSite
from cohortium_secagg._site_states import KEY_SHARE, SEED_SHARE, Channel, Shared
from tests.fuzz.mutation import mutated
from tests.support.adversarial_network import AdversarialNetwork, Envelope, damaged, elsewhere

Patch = pytest.MonkeyPatch


@st.composite
def terms(draw: st.DrawFn) -> dict[str, Any]:
    """A cohort, what it fears, and thresholds that may suit it."""
    sites = draw(st.integers(2, 6))
    colluding = draw(st.integers(0, min(2, sites - 2)))
    adversary = draw(st.sampled_from(["honest-but-curious", "active"]))
    least = (sites + colluding) // 2 + 1 if adversary == "active" else max(2, colluding + 1)
    threshold = draw(st.sampled_from([least, least, min(sites, least + 1), sites]))
    shares = draw(st.integers(max(threshold, colluding + 2), max(sites, threshold) + 1))
    return {
        "aggregator": SecAgg(
            reconstruction_threshold=threshold, num_shares=0 if adversary == "active" else shares
        ),
        "sites": sites,
        "adversary": adversary,
        "max_colluding": colluding,
        "min_contributors": draw(st.sampled_from([1, 1, sites - 1])),
        "bits": draw(st.integers(1, 64)),
        "length": draw(st.sampled_from([1, 4, 32, 70])),
    }


def begun(terms: dict[str, Any]) -> AdversarialNetwork:
    try:
        return AdversarialNetwork(**terms)
    except StudyError:
        reject()


numbers = st.integers(0, 1 << 16)
FAULTS = (
    "lose",
    "flip",
    "flip",
    "flip",
    "cut",
    "extend",
    "mutate",
    "replace",
    "twice",
    "astray",
    "round",
)


class Misbehaviour(RuleBasedStateMachine):
    """A coordinator and sites that keep to the protocol; all that is between them does not."""

    net: AdversarialNetwork

    @initialize(terms=terms())
    def begin(self, terms: dict[str, Any]) -> None:
        self.net = begun(terms)
        self.everyone = range(terms["sites"])
        self.net.open(self.everyone)

    @rule(
        faults=st.lists(st.tuples(st.sampled_from(FAULTS), numbers), max_size=2),
        lost=numbers,
        calm=st.integers(0, 5),
    )
    def exchange(self, faults: list[tuple[str, int]], lost: int, calm: int) -> None:
        """An exchange with accidents on the way there and back, then calm ones."""
        if self.net.is_over:
            self.net.open(self.everyone)
        self.pass_on(faults, {lost % (8 * len(self.everyone))})
        for _ in range(calm):
            self.net.move_on()
            self.net.deliver_all()
        if self.net.total is not None:
            event("a sum was opened")

    def pass_on(self, faults: list[tuple[str, int]], lost: set[int]) -> None:
        self.net.move_on()
        there, back = ([f for f in faults if f[1] % 2 == way] for way in (0, 1))
        for fault, where in there:
            self.suffer(fault, where // 2)
        self.net.deliver_requests(lost)
        for fault, where in back:
            self.suffer(fault, where // 2)
        self.net.deliver_all(lost)

    @rule(at=st.integers(0, 4), fault=st.sampled_from(FAULTS), where=numbers)
    def attempt_with_a_fault(self, at: int, fault: str, where: int) -> None:
        """A whole attempt in which one envelope suffers and all others come in order."""
        self.net.open(self.everyone)
        while not self.net.is_over:
            self.pass_on([(fault, where)] if self.net.exchanges == at else [], set())

    @rule(order=st.randoms(use_true_random=False))
    def attempt_out_of_order(self, order: Random) -> None:
        """A whole attempt in which every envelope comes twice, in any order: that does no harm."""
        for _ in range(2):
            self.net.open(self.everyone)
            self.net.fresh.clear()  # a reply of an older attempt would count as its site's only one
            while self.net.move_on():
                while self.net.fresh:
                    envelopes, self.net.fresh = self.net.fresh * 2, []
                    order.shuffle(envelopes)
                    for envelope in envelopes:
                        self.net.deliver(envelope)
            if self.net.total is not None or not self.net.is_short:
                break
            # Something was lost that had been prepared.  That harms one attempt, and no more.
        assert self.net.total is not None, "no sum, though nothing was lost."
        if self.net.is_short:
            event("a prepared attempt gave a sum")

    @rule(fault=st.sampled_from(FAULTS), where=numbers)
    def accident(self, fault: str, where: int) -> None:
        """Something happens to a envelope, fresh or of old."""
        self.suffer(fault, where)

    def suffer(self, fault: str, where: int) -> None:
        net, envelope = self.net, self.envelope(where)
        if envelope is None:
            return
        rng = Random(where)
        other = rng.choice([*net.fresh, *net.seen, envelope])
        data, spare = content(envelope), content(other)
        bad: dict[str, Callable[[], list[Envelope]]] = {
            "lose": list,
            "flip": lambda: [damaged(envelope, lambda data: flipped(data, rng))],
            "cut": lambda: [damaged(envelope, lambda data: data[: rng.randrange(len(data) + 1)])],
            "extend": lambda: [
                damaged(envelope, lambda data: data + rng.randbytes(rng.choice((1, 9))))
            ],
            "mutate": lambda: [damaged(envelope, lambda data: mutated(data, spare, rng))],
            "replace": lambda: [
                damaged(envelope, lambda _: rng.choice((spare, rng.randbytes(70))))
            ],
            "twice": lambda: [envelope, envelope],
            "astray": lambda: [elsewhere(envelope, site=rng.choice(self.everyone))],
            "round": lambda: [elsewhere(envelope, later=rng.choice((-1, 1)))],
        }
        assert data is not None
        for come in bad[fault]():
            net.deliver(come)

    def envelope(self, where: int) -> Envelope | None:
        """One that is on its way, and so is taken from there, or one that has been seen."""
        net = self.net
        if net.fresh and where % 4:
            return net.fresh.pop(where % len(net.fresh))
        return net.seen[where % len(net.seen)] if net.seen else None

    @rule(site=numbers)
    def restart(self, site: int) -> None:
        """A site comes back with its identity and its journal, and is asked again."""
        site %= len(self.everyone)
        self.net.restart(site)
        for envelope in list(self.net.seen):
            if envelope.site == site and envelope.ask.attempt == self.net.attempt:
                self.net.deliver(envelope)

    @precondition(lambda self: self.net.fresh)
    @rule()
    def move_on(self) -> None:
        """The coordinator waits no longer."""
        self.net.move_on()

    @precondition(lambda self: self.net.exchanges > 1)
    @rule(rounds=st.integers(0, 1), absent=st.sets(st.integers(0, 5), max_size=2))
    def open(self, rounds: int, absent: set[int]) -> None:
        """A new attempt among some, with envelopes of the old one on their way."""
        sites = [site for site in self.everyone if site not in absent]
        self.net.open(sites or self.everyone, rounds=rounds)

    @precondition(lambda self: self.net.is_active)
    @rule(order=numbers)
    def lie(self, order: int) -> None:
        """To each site some, itself, and no others have survived; they do not agree on it."""
        net = self.net
        net.open(self.everyone)
        while net.stage != "vectors" and net.move_on():
            net.deliver_all()
        net.lie(named(self.everyone, net.floor, order))

    @precondition(lambda self: self.net.is_active)
    @rule(order=numbers)
    def begin_two_set_ups(self, order: int) -> None:
        """Some sites use what they have prepared, and the others begin the same attempt anew."""
        net, rng = self.net, Random(order)
        for _ in range(2):
            attempt(net, {})
        some = set(rng.sample(self.everyone, rng.randint(1, len(self.everyone))))
        rest = [site for site in self.everyone if site not in some]
        net.open(self.everyone)
        if net.move_on():
            net.deliver_all(some)
        net.set_up_again(some, rest if order % 2 else ())
        told: Any = dict.fromkeys(self.everyone, self.everyone)
        if order % 3:
            told = named(self.everyone, net.floor, order)
        net.lie(dict(told) | dict.fromkeys(some, sorted(some)))

    @precondition(lambda self: self.net.is_active)
    @rule(order=numbers)
    def prepare_two_rosters(self, order: int) -> None:
        """Sites are shown different rosters of the next attempt, and begin it on them."""
        begin_on_two_rosters(self.net, self.everyone, order)
        attempt = self.net.attempts[self.net.attempt]
        if any(view.masked for view in attempt.views):
            event("a site masked on a roster of its own")


def named(everyone: range, floor: int, order: int) -> dict[int, list[int]]:
    """Survivors to name to each site, as few as may be."""
    kept = Random(order).sample(everyone, floor - 1)
    told = {}
    for site in everyone:
        others = Random(order + site).sample(everyone, len(everyone))
        told[site] = list(dict.fromkeys([site, *kept, *others]))[:floor]
    return told


def begin_on_two_rosters(net: AdversarialNetwork, everyone: range, order: int) -> None:
    """Show sites different rosters of the next attempt, and begin it, with lies about survivors."""
    rng = Random(order)
    net.open(everyone)
    while net.move_on() and net.stage != "unmasking":
        net.deliver_all()
    net.fresh.clear()
    some = set(rng.sample(everyone, rng.randint(1, len(everyone))))
    rosters = {}
    for site in everyone:
        others = rng.sample(everyone, rng.randint(0, len(everyone)))
        rosters[site] = sorted({site, *(everyone if site in some else others)})
    sealed = net.prepare_apart(rosters)
    net.open(everyone, rounds=1)
    # Shares of another roster cost a site its part, so most are sorted.
    net.mask_apart(sealed, rosters if order % 4 else dict.fromkeys(everyone))
    if order % 2:
        net.set_up_again(set(everyone) - some, some)
    told = named(everyone, net.floor, order)
    net.lie(told | {site: sorted(some) for site in some if order % 3})


def content(envelope: Envelope) -> bytes:
    return (
        envelope.reply if envelope.reply is not None else envelope.ask.own or envelope.ask.broadcast
    )


def flipped(data: bytes, rng: Random) -> bytes:
    if not data:
        return data
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


IS_LONG = settings.get_current_profile_name() == "long"
BED = settings(
    deadline=None,
    max_examples=settings().max_examples if IS_LONG else 60,
    stateful_step_count=40 if IS_LONG else 25,
    derandomize=not IS_LONG,
    suppress_health_check=list(HealthCheck),
)

TestMachine = pytest.mark.slow(Misbehaviour.TestCase)
TestMachine.settings = BED


# --- Nothing misbehaves, or no more than can be borne ---------------------------------------------


def attempt(net: AdversarialNetwork, lost: dict[int, int]) -> None:
    """An attempt; a site in `lost` answers no more from that exchange on."""
    net.open(range(net.config.federation_spec.sites))
    while net.move_on():
        net.deliver_all({site for site, stage in lost.items() if net.exchanges > stage})


@given(terms=terms(), attempts=st.integers(1, 3))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_undisturbed_attempt_sums_all_sites(terms: dict[str, Any], attempts: int) -> None:
    net = begun(terms)
    for _ in range(attempts):
        attempt(net, {})
        assert net.total is not None
        assert net.total.contributors == tuple(range(net.config.federation_spec.sites))
        net.check_attack()
    assert net.is_short == (attempts > 1)


def borne(net: AdversarialNetwork) -> int:
    """How many sites may be lost: any, at any stage."""
    federation_spec, threshold, shares = (
        net.config.federation_spec,
        int(net.protocol.threshold),
        int(net.protocol.shares),
    )
    quorum = max(threshold, federation_spec.max_colluding + 2)
    over_all = federation_spec.sites - max(quorum, federation_spec.min_contributors)
    if net.is_active or shares >= federation_spec.sites:
        return over_all
    # On a sparse graph: those lost in one neighbourhood, and those that cut it with the colluding.
    return max(0, min(over_all, shares - quorum, shares - 2 - federation_spec.max_colluding))


@given(terms=terms(), data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_tolerated_dropouts_leave_a_sum(terms: dict[str, Any], data: st.DataObject) -> None:
    net = begun(terms)
    if data.draw(st.booleans()):
        attempt(net, {})
    some = st.dictionaries(
        st.integers(0, terms["sites"] - 1), st.integers(0, 4), max_size=borne(net)
    )
    lost = data.draw(some)
    attempt(net, lost)
    assert net.total is not None
    assert set(range(terms["sites"])) - lost.keys() <= set(net.total.contributors)
    net.check_attack()


# --- The bed has teeth ----------------------------------------------------------------------------


def forget_lost_sites(patch: Patch) -> None:
    patch.setattr(MaskingGraph, "lost", lambda _web, _survivors: [])


def believe_any_digest(patch: Patch, *purposes: str) -> None:
    honest = AttemptLabel.digest
    patch.setattr(
        AttemptLabel,
        "digest",
        lambda scope, purpose, data, *sites: (
            bytes(32) if purpose in purposes else honest(scope, purpose, data, *sites)
        ),
    )


def believe_any_vector(patch: Patch) -> None:
    patch.setattr(_stages, "verify_tag", lambda *_: True)


def believe_any_seed(patch: Patch) -> None:
    # Each of the hashes of shares would find a wrong one by itself.
    believe_any_digest(patch, "seed", SEED_SHARE, KEY_SHARE)


def take_any_length(patch: Patch) -> None:
    believe_any_vector(patch)
    patch.setattr(Ring, "require_length", lambda *_: None)
    honest = Ring.add

    def add(ring: Ring, packed: memoryview, total: Any) -> None:
        size = ring.bytes_for(len(total))
        honest(ring, bytes(packed).ljust(size, b"\0")[:size], total)

    patch.setattr(Ring, "add", add)


def count_a_repeat_again(patch: Patch) -> None:
    def receive(self: Any, site: int, reply: bytes) -> None:
        if site in self._waiting:
            self._stage.accept(site, reply)

    patch.setattr(SecAggCoordinator, "receive", receive)


def unmask_as_often_as_asked(patch: Patch) -> None:
    honest = SecAggSite._take

    def take(self: Any, request: Any) -> Any:
        kept = self.__dict__.setdefault("kept", {})
        kept[type(self._state)] = self._state
        for due, kinds in DUE:
            if isinstance(request, kinds) and due in kept:
                return kept[due], self._prepared
        return honest(self, request)

    patch.setattr(SecAggSite, "_take", take)


def use_again_what_was_prepared(patch: Patch) -> None:
    honest = SecAggSite._enter_prepared

    def enter(self: Any, ask: Any, request: Any) -> None:
        kept = self.__dict__.setdefault("kept", {})
        if isinstance(self._prepared, Shared):
            kept[self._prepared.scope] = self._prepared
        scope = self._protocol.scope(ask.round, ask.attempt)
        self._prepared = kept.get(scope, self._prepared)
        honest(self, ask, request)

    patch.setattr(SecAggSite, "_enter_prepared", enter)


def forget_over_a_restart(patch: Patch) -> None:
    patch.setattr(MemoryJournal, "entries", lambda _journal: ())


def leave_sealed_shares_unbound(patch: Patch) -> None:
    patch.setattr(Channel, "_joined", lambda _channel, _sender, _receiver: b"")


def agree_with_nobody(patch: Patch) -> None:
    patch.setattr(Confirmed, "check_signatures", lambda _consented, _signatures: None)


def let_an_error_through(patch: Patch) -> None:
    patch.setattr(
        codec,
        "_decode",
        lambda data, kinds, _limit: msgspec.msgpack.decode(
            data[len(MAGIC) :], type=reduce(or_, kinds)
        ),
    )


def never_end(patch: Patch) -> None:
    honest = SecAggCoordinator.next_requests

    def next_requests(self: Any) -> StageRequests:
        made = honest(self)
        return StageRequests(b"more", {0: b""}) if isinstance(self._stage, Finished) else made

    patch.setattr(SecAggCoordinator, "next_requests", next_requests)


PLANTED: dict[Callable[[Patch], None], tuple[str, str | None]] = {
    forget_lost_sites: ("honest-but-curious", "a wrong sum"),
    believe_any_vector: ("honest-but-curious", "a wrong sum"),
    believe_any_seed: ("honest-but-curious", "a wrong sum"),
    take_any_length: ("honest-but-curious", "a wrong sum"),
    count_a_repeat_again: ("honest-but-curious", "a wrong sum"),
    unmask_as_often_as_asked: ("honest-but-curious", "gave shares twice|two vectors"),
    use_again_what_was_prepared: ("honest-but-curious", "two vectors"),
    forget_over_a_restart: ("active", "took part again"),
    leave_sealed_shares_unbound: ("honest-but-curious", "a wrong sum"),
    agree_with_nobody: ("active", "can be had"),
    let_an_error_through: ("active", None),
    never_end: ("honest-but-curious", "it never ends"),
}


class Small(Misbehaviour):
    """The same over one small cohort, so that a fault is found soon."""

    adversary = ""

    @initialize()
    def begin(self) -> None:
        self.everyone = range(5)
        self.net = AdversarialNetwork(
            SecAgg(reconstruction_threshold=3, num_shares=5), 5, adversary=self.adversary, length=32
        )


def test_prepared_rosters_that_differ_open_one_sum(monkeypatch: Patch) -> None:
    """The rule has teeth: without the agreement on a set, it finds a second sum."""

    def play(orders: range) -> int:
        return sum(opened(order) for order in orders)

    def opened(order: int) -> bool:
        aggregator = SecAgg(reconstruction_threshold=3, num_shares=5)
        net = AdversarialNetwork(aggregator, 5, adversary="active", length=1)
        begin_on_two_rosters(net, range(5), order)
        return bool(net.attempts[net.attempt].unmasked)

    assert play(range(24, 36)) > 0
    agree_with_nobody(monkeypatch)
    with pytest.raises(AssertionError, match="can be had"):
        play(range(24, 36))


FOUND_LATE = (believe_any_vector, believe_any_seed, take_any_length, leave_sealed_shares_unbound)
"""The faults that take the most examples to find."""


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, marks=[pytest.mark.slow] if fault in FOUND_LATE else [])
        for fault in PLANTED
    ],
    ids=lambda fault: fault.__name__,
)
def test_state_machine_detects_injected_fault(
    fault: Callable[[Patch], None], monkeypatch: Patch
) -> None:
    adversary, sign = PLANTED[fault]
    monkeypatch.setattr(Small, "adversary", adversary)
    fault(monkeypatch)
    budget = settings(
        BED, max_examples=200, derandomize=True, database=None, phases=[Phase.generate]
    )
    with pytest.raises((AssertionError, msgspec.MsgspecError, KeyError), match=sign):
        run_state_machine_as_test(Small, settings=budget)
