"""Keys that are not what they seem: each attack is refused, and succeeds without its check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
from attrs import evolve
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cohortium.plugin import MessageError, Randomness
from cohortium_secagg import SecAgg
from cohortium_secagg._consistency_check import SurvivorSigner
from cohortium_secagg._keys import KeyPair
from cohortium_secagg._messages import (
    ConfirmedUnmaskRequest,
    ConsistencyRequest,
    Keys,
    MaskedVectorRequest,
    ShareKeysAmongAllRequest,
    ShareKeysRequest,
    SignedKeys,
    UnmaskRequest,
)
from cohortium_secagg._statements import Statements
from tests.support.malicious_coordinator import MaliciousCoordinator, is_refused, nothing

Patch = pytest.MonkeyPatch
Attackers: TypeAlias = Callable[..., MaliciousCoordinator]


def fresh_pairs() -> dict[int, tuple[KeyPair, KeyPair]]:
    secret = Randomness.insecure_from_seed(99)
    return {
        peer: (
            KeyPair(secret.secret_bytes(32, peer, "a")),
            KeyPair(secret.secret_bytes(32, peer, "b")),
        )
        for peer in range(1, 10)
    }


def stand_in_the_middle(attacker: MaliciousCoordinator) -> list[int]:
    """Tell the victim keys of the coordinator's own for those of all its peers."""
    attacker.advertise([0])
    pairs = fresh_pairs()
    roster = {p: SignedKeys(a.public, b.public, bytes(64)) for p, (a, b) in pairs.items()}
    return attacker.impersonate(0, roster, pairs)


def test_swapped_keys_are_refused(attackers: Attackers, monkeypatch: Patch) -> None:
    is_refused("signature", stand_in_the_middle, attackers())
    monkeypatch.setattr(SurvivorSigner, "check_keys", nothing)
    attacker = attackers()
    assert stand_in_the_middle(attacker) == attacker.true_sum(0)


def replay(attacker: MaliciousCoordinator) -> list[int]:
    """Pass on signed keys of an older attempt, whose private halves have leaked since."""
    older = dict(attacker.advertise())
    leaked = {site: attacker.pairs(site) for site in older}
    attacker.begin(1)
    attacker.advertise([0])
    del older[0], leaked[0]
    return attacker.impersonate(0, older, leaked)


def test_replayed_signed_keys_are_refused(attackers: Attackers, monkeypatch: Patch) -> None:
    is_refused("signature", replay, attackers())
    original = Statements.of_keys

    def of_any_attempt(self: Statements, site: int, keys: Keys) -> bytes:
        scope = evolve(self.scope, round=0, attempt=0)
        return original(evolve(self, scope=scope), site, keys)

    monkeypatch.setattr(Statements, "of_keys", of_any_attempt)
    attacker = attackers()
    assert replay(attacker) == attacker.true_sum(0)


class SmallOrder:
    """Stands for a key pair whose agreements are zero, whoever makes them."""

    public = bytes(32)

    def agree(self, _public: bytes, label: bytes) -> bytes:
        return HKDF(SHA256(), length=32, salt=None, info=label).derive(bytes(32))


def agree_on_zero(attacker: MaliciousCoordinator) -> list[int]:
    attacker.advertise([0])
    roster = {peer: Keys(bytes(32), bytes(32)) for peer in range(1, 10)}
    return attacker.impersonate(0, roster, {p: (SmallOrder(), SmallOrder()) for p in roster})


def test_unsigned_keys_of_small_order_are_refused(attackers: Attackers, monkeypatch: Patch) -> None:
    """To sites that take keys on trust; signatures alone would stop this one too."""

    def trusting() -> MaliciousCoordinator:
        return attackers(aggregator=SecAgg(6, 10), adversary="honest-but-curious")

    is_refused("small-order", agree_on_zero, trusting())
    original = KeyPair.agree

    def any_order(self: KeyPair, public: bytes, label: bytes) -> bytes:
        if public == SmallOrder.public:
            return SmallOrder().agree(public, label)
        return original(self, public, label)

    monkeypatch.setattr(KeyPair, "agree", any_order)
    attacker = trusting()
    assert agree_on_zero(attacker) == attacker.true_sum(0)


@pytest.mark.parametrize("first", [0, 1])
def test_signed_key_of_small_order_is_refused(attackers: Attackers, first: int) -> None:
    attacker = attackers()
    roster = dict(attacker.advertise())
    statements = Statements(attacker.protocol.directory, attacker.scope)
    small = Keys(bytes([first]) + bytes(31), roster[1].masking)
    roster[1] = statements.sign_keys(attacker.sites[1]._member.identity, 1, small)
    is_refused("small-order", lambda v: v.share(roster, [0]), attacker)


@pytest.mark.parametrize("change", ["left out", "other keys"])
def test_roster_without_own_keys_is_refused(attackers: Attackers, change: str) -> None:
    attacker = attackers()
    roster = dict(attacker.advertise())
    own = roster.pop(0)
    if change == "other keys":
        roster[0] = SignedKeys(own.masking, own.sealing, own.signature)
    is_refused("signature", lambda v: v.share(roster, [0]), attacker)


def with_two_more(attacker: MaliciousCoordinator) -> dict[int, SignedKeys]:
    """Keys of ten sites, and of two others that have signed some as well."""
    roster = dict(attacker.advertise(range(10)))
    statements = Statements(attacker.protocol.directory, attacker.scope)
    for site, (sealing, masking) in list(fresh_pairs().items())[:2]:
        identity = attacker.sites[9 + site]._member.identity
        keys = Keys(sealing.public, masking.public)
        roster[9 + site] = statements.sign_keys(identity, 9 + site, keys)
    return roster


def test_rosters_of_wrong_size_are_refused(attackers: Attackers) -> None:
    attacker = attackers(12, cohort_size=10)
    roster = with_two_more(attacker)
    is_refused("neighbourhood", lambda v: v.share(roster, [0]), attacker)
    few = {site: roster[site] for site in range(1, 6)}
    is_refused("neighbourhood", lambda v: v.share(few, [1]), attacker)
    unmasked_neighbours = {**few, 6: roster[6], 40: roster[7]}
    is_refused("signature", lambda v: v.share(unmasked_neighbours, [2]), attacker)


def test_sites_with_different_rosters_do_not_mask(attackers: Attackers) -> None:
    attacker = attackers(12, cohort_size=10)
    keys = with_two_more(attacker)
    attacker.share({site: keys[site] for site in range(10)}, range(6))
    attacker.share({site: keys[site] for site in range(2, 12)}, range(6, 10))
    sealed = {peer: attacker.sealed[peer][5] for peer in (0, 1, 2, 3, 4, 6, 7)}
    is_refused("sealed", lambda v: v.ask(5, MaskedVectorRequest(v.attempt, sealed)), attacker)


# --- The form of messages -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        ShareKeysAmongAllRequest(0, {1: SignedKeys(bytes(31), bytes(32), bytes(64))}),
        ShareKeysAmongAllRequest(0, {1: SignedKeys(bytes(32), bytes(33), bytes(64))}),
        ShareKeysAmongAllRequest(0, {1: SignedKeys(bytes(32), bytes(32), bytes(63))}),
        ShareKeysAmongAllRequest(0, {1 << 16: SignedKeys(bytes(32), bytes(32), bytes(64))}),
        ShareKeysAmongAllRequest(0, {1: Keys(bytes(32), bytes(32))}),  # type: ignore[dict-item]
        MaskedVectorRequest(0, {1: bytes(81)}),
        ConfirmedUnmaskRequest(0, {1: bytes(65)}),
        ConsistencyRequest(0, tuple(range(9999))),
        ShareKeysRequest(0, {1: Keys(bytes(32), bytes(32))}),
        UnmaskRequest(0, tuple(range(10))),
    ],
)
def test_malformed_or_honest_protocol_message_is_refused(request_: Any) -> None:
    attacker = MaliciousCoordinator()
    attacker.advertise()
    with pytest.raises(MessageError):
        attacker.ask(0, request_)
