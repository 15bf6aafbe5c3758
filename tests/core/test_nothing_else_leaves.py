"""Nothing else leaves: every field of every message is accounted for, and a run shows no other.

The table says why each field may be sent.  A field that is added has to be entered here, with its
reason; the run in two worlds then holds the reason to what is really sent.
"""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from bed import Squares, tiny
from cohortium import wire
from cohortium.auditing import audit_transcript
from cohortium.auditing.playing import Play, Tape
from cohortium.auditing.transcript import fields
from cohortium.messages import Message
from cohortium.preparation import Ready
from cohortium_fedavg import FedAvg
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from cohortium_secagg import _messages as secagg

PLACE = "public: where the message stands in the run"
STUDY = "what the study lead proposes, which no site's data enter"
SUM = "derived from sums that the guarantee covers"
NESTED = "an aggregator's message, or the release itself"
CHOICE = "public: who takes part, and who has dropped out; a refusal to take part is not covered"
KEY = "drawn by the site, and no data in it: a public key"
SEALED = "encrypted between two sites, and drawn by one of them"
SHARE = "a share of a secret that was drawn by a site; no data in it"
SIGNED = "a signature over public values"
RELEASE = "the release, noised under the guarantee, and under masks"
TAG = "an authenticator of the masked release, under a key agreed on with the coordinator"
REFUSAL = "a condition of the request or the update; the guarantee's assumptions exclude it"

COVERED: dict[str, str] = {
    "Request.session": PLACE,
    "Request.round": PLACE,
    "Request.attempt": PLACE,
    "Request.stage": PLACE,
    "Request.weights": SUM,
    "Request.body": NESTED,
    "Reply.attempt": PLACE,
    "Reply.stage": PLACE,
    "Reply.body": NESTED,
    "Refusal.attempt": PLACE,
    "Refusal.stage": PLACE,
    "Refusal.code": REFUSAL,
    "Refusal.reason": REFUSAL,
    "RollCall.challenge": "drawn by the coordinator",
    "Present.site": PLACE,
    "Present.signature": "a signature over a challenge and the site's number",
    "Invitation.session": PLACE,
    "Invitation.study": STUDY,
    "Invitation.directory": STUDY,
    "Invitation.versions": STUDY,
    "Acceptance.session": PLACE,
    "Acceptance.site": PLACE,
    "Acceptance.examples": "declared by the hospital in its site file, never counted",
    "Acceptance.versions": "of software at the site; no data in it",
    "AskKeys.attempt": PLACE,
    "AskKeys.tagging": "drawn by the coordinator: a public key",
    "Keys.sealing": KEY,
    "Keys.masking": KEY,
    "SignedKeys.sealing": KEY,
    "SignedKeys.masking": KEY,
    "SignedKeys.signature": SIGNED,
    "AskShares.attempt": PLACE,
    "AskShares.neighbours": KEY,
    "AskSharesAmong.attempt": PLACE,
    "AskSharesAmong.roster": KEY,
    "Shares.sealed": SEALED,
    "Shares.commitment": "a hash of a mask seed that was drawn by the site",
    "Shares.seeds": "hashes of uniform shares of that seed",
    "Shares.keys": "hashes of uniform shares of a key that was drawn by the site",
    "AskVector.attempt": PLACE,
    "AskVector.sealed": SEALED,
    "Vector.packed": RELEASE,
    "Vector.tag": TAG,
    "AskUnmasking.attempt": PLACE,
    "AskUnmasking.survivors": CHOICE,
    "AskConsent.attempt": PLACE,
    "AskConsent.survivors": CHOICE,
    "Consent.signature": SIGNED,
    "AskOpening.attempt": PLACE,
    "AskOpening.signatures": SIGNED,
    "Unmasking.seeds": SHARE,
    "Unmasking.keys": SHARE,
}
"""Why each field of each message may be sent."""

STAY = {
    "Request": "secagg's base of its requests; wire has one of the same name, which is sent",
    "Done": "an entry of the site's own journal, which is never sent",
}


def sent() -> dict[str, type[Message]]:
    """Every message class of the wire and of the aggregators that has one."""
    found: dict[str, type[Message]] = {}
    for module in (wire, secagg):
        for name, value in vars(module).items():
            is_own = isinstance(value, type) and value.__module__ == module.__name__
            if is_own and issubclass(value, Message) and not (module is secagg and name in STAY):
                assert name not in found, f"two messages are called {name}"
                found[name] = value
    return found


def test_every_field_of_every_message_has_its_reason() -> None:
    declared = {
        f"{name}.{field}" for name, kind in sent().items() for field in kind.__struct_fields__
    }
    assert declared == set(COVERED)
    assert msgspec.structs.fields(wire.Reply)[-1].name == "body"


TRAINERS = {"fedsgd": FedSGD(sampling_rate=1.0), "fedavg": FedAvg(steps=2, batch_size=1000)}
RUNS: dict[str, dict[str, Any]] = {
    f"{aggregator}-{trainer}-{unit}-{adversary}": {
        "aggregator": aggregator,
        "trainer": TRAINERS[trainer],
        "privatizer": Gaussian(epsilon=20.0, unit=unit),
        "adversary": adversary,
    }
    for aggregator in ("plain", "secagg")
    for trainer in TRAINERS
    for unit in ("example", "site")
    for adversary in (("honest-but-curious", "active") if aggregator == "secagg" else ("active",))
}
RUNS["shared"] = {
    "aggregator": "secagg",
    "trainer": TRAINERS["fedsgd"],
    "privatizer": Gaussian(epsilon=20.0, against="coordinator"),
    "colluding": 1,
    "min_sites": 4,
}


def ready(name: str) -> Ready:
    return tiny(dataset=Squares(examples=60), sites=5, **RUNS[name]).prepare()


@pytest.mark.parametrize("name", RUNS)
def test_a_run_sends_what_the_guarantee_covers_and_nothing_else(name: str) -> None:
    study = ready(name)
    finding = audit_transcript(study)
    assert not finding.is_refuted, finding
    hands = {site: study.splits.train.take(hand) for site, hand in enumerate(study.hands)}
    play = Play.of(study, study.setting, hands, {site: Tape().recording for site in hands})
    assert len(list(play.rounds(1))) == 1
    for message in play.sent:
        for path, _ in fields(message.data):
            assert not path or set(named(path)) & set(COVERED), path


def named(path: str) -> list[str]:
    """The message fields on a path: "Reply.body.Vector.packed" has two."""
    parts = path.split(".")
    return [".".join(pair) for pair in itertools.pairwise(parts) if pair[0][0].isupper()]
