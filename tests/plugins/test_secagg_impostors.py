"""Keys that are not what they seem: each attack is refused, and succeeds without its check."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cohortium.plugin import MessageError, Randomness
from cohortium_secagg import SecAgg
from cohortium_secagg._consent import Witness
from cohortium_secagg._keys import KeyPair
from cohortium_secagg._messages import (
    AskConsent,
    AskOpening,
    AskShares,
    AskSharesAmong,
    AskUnmasking,
    AskVector,
    Keys,
    SignedKeys,
)
from cohortium_secagg._statements import Statements
from villain import Villain, is_refused, nothing

Patch = pytest.MonkeyPatch


def fresh_pairs() -> dict[int, tuple[KeyPair, KeyPair]]:
    secret = Randomness.insecure_from_seed(99)
    return {
        peer: (
            KeyPair(secret.secret_bytes(32, peer, "a")),
            KeyPair(secret.secret_bytes(32, peer, "b")),
        )
        for peer in range(1, 10)
    }


def stand_in_the_middle(villain: Villain) -> list[int]:
    """Tell the victim keys of the coordinator's own for those of all its peers."""
    villain.advertise([0])
    pairs = fresh_pairs()
    roster = {p: SignedKeys(a.public, b.public, bytes(64)) for p, (a, b) in pairs.items()}
    return villain.impersonate(0, roster, pairs)


def test_swapped_keys_would_give_the_update(monkeypatch: Patch) -> None:
    is_refused("signature", stand_in_the_middle, Villain())
    monkeypatch.setattr(Witness, "check_keys", nothing)
    villain = Villain()
    assert stand_in_the_middle(villain) == villain.truth(0)


def replay(villain: Villain) -> list[int]:
    """Pass on signed keys of an older attempt, whose private halves have leaked since."""
    older = dict(villain.advertise())
    leaked = {s: (villain.sites[s]._state.sealing, villain.sites[s]._state.masking) for s in older}
    villain.begin(1)
    villain.advertise([0])
    del older[0], leaked[0]
    return villain.impersonate(0, older, leaked)


def test_signed_keys_of_an_older_attempt_would_give_the_update(monkeypatch: Patch) -> None:
    is_refused("signature", replay, Villain())
    original = Statements.of_keys

    def of_any_attempt(self: Statements, site: int, keys: Keys) -> bytes:
        return original(evolve(self, scope=evolve(self.scope, attempt=0)), site, keys)

    monkeypatch.setattr(Statements, "of_keys", of_any_attempt)
    villain = Villain()
    assert replay(villain) == villain.truth(0)


class SmallOrder:
    """Stands for a key pair whose agreements are zero, whoever makes them."""

    public = bytes(32)

    def agree(self, _public: bytes, label: bytes) -> bytes:
        return HKDF(SHA256(), length=32, salt=None, info=label).derive(bytes(32))


def agree_on_zero(villain: Villain) -> list[int]:
    villain.advertise([0])
    roster = {peer: Keys(bytes(32), bytes(32)) for peer in range(1, 10)}
    return villain.impersonate(0, roster, {p: (SmallOrder(), SmallOrder()) for p in roster})


def test_keys_of_small_order_would_give_the_update(monkeypatch: Patch) -> None:
    """To sites that take keys on trust; signatures alone would stop this one too."""

    def trusting() -> Villain:
        return Villain(aggregator=SecAgg(6, 10), adversary="honest-but-curious")

    is_refused("small-order", agree_on_zero, trusting())
    original = KeyPair.agree

    def any_order(self: KeyPair, public: bytes, label: bytes) -> bytes:
        if public == SmallOrder.public:
            return SmallOrder().agree(public, label)
        return original(self, public, label)

    monkeypatch.setattr(KeyPair, "agree", any_order)
    villain = trusting()
    assert agree_on_zero(villain) == villain.truth(0)


@pytest.mark.parametrize("first", [0, 1])
def test_a_key_of_small_order_is_refused_though_its_site_signed_it(first: int) -> None:
    villain = Villain()
    roster = dict(villain.advertise())
    statements = Statements(villain.rules.directory, villain.scope)
    small = Keys(bytes([first]) + bytes(31), roster[1].masking)
    roster[1] = statements.sign_keys(villain.sites[1]._member.identity, 1, small)
    is_refused("small-order", lambda v: v.share(roster, [0]), villain)


@pytest.mark.parametrize("change", ["left out", "other keys"])
def test_a_roster_without_this_site_and_its_own_keys(change: str) -> None:
    villain = Villain()
    roster = dict(villain.advertise())
    own = roster.pop(0)
    if change == "other keys":
        roster[0] = SignedKeys(own.masking, own.sealing, own.signature)
    is_refused("signature", lambda v: v.share(roster, [0]), villain)


def test_rosters_of_a_wrong_size() -> None:
    villain = Villain(12, size=10)
    roster = villain.advertise()
    is_refused("neighbourhood", lambda v: v.share(roster, [0]), villain)
    few = {site: roster[site] for site in range(1, 6)}
    is_refused("neighbourhood", lambda v: v.share(few, [1]), villain)
    strangers = {**few, 6: roster[6], 40: roster[7]}
    is_refused("signature", lambda v: v.share(strangers, [2]), villain)


def test_sites_that_were_told_different_rosters_do_not_mask_with_one_another() -> None:
    villain = Villain(12, size=10)
    keys = villain.advertise()
    villain.share({site: keys[site] for site in range(10)}, range(6))
    villain.share({site: keys[site] for site in range(2, 12)}, range(6, 12))
    sealed = {peer: villain.sealed[peer][5] for peer in (0, 1, 2, 3, 4, 6, 7)}
    is_refused("sealed", lambda v: v.ask(5, AskVector(0, sealed)), villain)


# --- The form of messages -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        AskSharesAmong(0, {1: SignedKeys(bytes(31), bytes(32), bytes(64))}),
        AskSharesAmong(0, {1: SignedKeys(bytes(32), bytes(33), bytes(64))}),
        AskSharesAmong(0, {1: SignedKeys(bytes(32), bytes(32), bytes(63))}),
        AskSharesAmong(0, {1 << 16: SignedKeys(bytes(32), bytes(32), bytes(64))}),
        AskSharesAmong(0, {1: Keys(bytes(32), bytes(32))}),  # type: ignore[dict-item]
        AskVector(0, {1: bytes(81)}),
        AskOpening(0, {1: bytes(65)}),
        AskConsent(0, tuple(range(9999))),
        AskShares(0, {1: Keys(bytes(32), bytes(32))}),
        AskUnmasking(0, tuple(range(10))),
    ],
)
def test_a_message_of_a_wrong_length_or_of_the_trusting_protocol(request_: Any) -> None:
    villain = Villain()
    villain.advertise()
    with pytest.raises(MessageError):
        villain.ask(0, request_)
