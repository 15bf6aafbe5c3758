"""Names on the wire and on the disk: a class or a field may be renamed in code, these stay.

A change of this table is a change of format: raise the version that belongs to it.
"""

from __future__ import annotations

from importlib import import_module
from typing import get_args

import pytest

from cohortium.deployment.study_facts import StudyFacts
from cohortium.deployment.study_record import Approval, StudyRecord
from cohortium.deployment.trail_entries import AnyEntry
from cohortium.ledger.cost import AttemptCost
from cohortium.messages import deployment, encrypted, run
from cohortium.messages.codec import Message, decode, encode
from cohortium.privacy.mechanisms import GaussianMechanism, RenyiBoundedMechanism
from cohortium.roles.events import EVENT_NAMES, Event
from cohortium.runs import checkpoint
from cohortium.runs.signatures import Signature

MESSAGES = {
    "acceptance": "session site examples versions",
    "advertise-keys-request": "attempt tagging",
    "attempt-started": "attempt",
    "completed-stage": "session round attempt what",
    "confirmed-unmask-request": "attempt signatures next_roster",
    "consistency-check": "signature",
    "consistency-request": "attempt survivors",
    "encrypted-answer": "outputs",
    "encrypted-query": "model seed key images",
    "encrypted-refusal": "reason",
    "encrypted-service": "scheme model features classes bias probe seed",
    "identify-reply": "site signature",
    "identify-request": "challenge",
    "invitation": "session study directory versions",
    "key": "public",
    "key-request": "",
    "keys": "sealing masking",
    "log-opened": "",
    "masked-vector": "packed tag next_keys",
    "masked-vector-request": "attempt sealed next_tagging",
    "refusal": "attempt stage code reason",
    "reply": "attempt stage body",
    "request": "session round attempt stage weights body plan_state server_state",
    "round-completed": "event",
    "run-completed": "",
    "sealed-seeds": "sealed",
    "sealed-shares": "sealed commitment seeds keys",
    "share-keys-among-all-request": "attempt roster",
    "share-keys-request": "attempt neighbours",
    "shares-request": "sites keys",
    "signed-keys": "sealing masking signature",
    "sum-request": "",
    "unmask-request": "attempt survivors next_neighbours",
    "unmasking-shares": "seeds keys next_shares",
}

PRICES = {
    None: "mechanism unit adjacency against colluding simulation",
    "gaussian": "noise_multiplier sampling_rate releases",
    "renyi": "name bounds",
}

TRAIL = {
    "answered": "at session round attempt stage has_release size sha256",
    "approval-ended": "at study",
    "head-noted": "at site number sha256",
    "identified": "at omitted",
    "key-changed": "at key",
    "opened": "at format trail site key",
    "refused": "at session omitted",
    "run-accepted": "at session study use tables",
    "started": "at version",
    "study-approved": "at study by until runs",
    "study-revoked": "at study by",
    "study-waits": "at study",
}

FILES = {
    "Approval": "by made until runs sessions",
    "Signature": (
        "role site session study releases result_sha256 weights_sha256 study_sha256 dataset_sha256 "
        "key signature"
    ),
    "StudyFacts": ("data use terms guarantee aggregation costs earlier values size is_measurement"),
    "StudyRecord": ("format digest study versions facts first_asked last_asked state approval"),
}

MODULES = (
    run,
    deployment,
    encrypted,
    checkpoint,
    "cohortium_secagg._messages",
    "cohortium_additive._messages",
)


def kinds() -> list[type[Message]]:
    """Every message with a name of its own in the modules that define some."""
    modules = [import_module(m) if isinstance(m, str) else m for m in MODULES]
    found = {
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type)
        and issubclass(kind, Message)
        and kind.__module__ == module.__name__
    }
    return [kind for kind in found if kind.__struct_config__.tag is not None]


def test_messages_keep_their_tags_and_fields() -> None:
    found = {
        str(kind.__struct_config__.tag): " ".join(kind.__struct_encode_fields__) for kind in kinds()
    }
    assert found == MESSAGES


def test_attempt_costs_keep_their_tags_and_fields() -> None:
    found = {
        kind.__struct_config__.tag: " ".join(kind.__struct_encode_fields__)
        for kind in (AttemptCost, GaussianMechanism, RenyiBoundedMechanism)
    }
    assert found == PRICES


def test_trail_entries_keep_their_tags_and_fields() -> None:
    found = {
        str(kind.__struct_config__.tag): " ".join(kind.__struct_encode_fields__)
        for kind in get_args(AnyEntry)
    }
    assert found == TRAIL


def test_files_of_approvals_and_signatures_keep_their_fields() -> None:
    found = {
        kind.__name__: " ".join(kind.__struct_encode_fields__)
        for kind in (Approval, Signature, StudyFacts, StudyRecord)
    }
    assert found == FILES


def test_each_event_has_a_name() -> None:
    assert set(EVENT_NAMES) == set(get_args(Event))
    assert len({*EVENT_NAMES.values()}) == len(EVENT_NAMES)


class Untagged(Message, frozen=True):
    number: int


def test_message_without_tag_is_refused() -> None:
    with pytest.raises(TypeError, match="the message class Untagged has no tag"):
        encode(Untagged(1))
    with pytest.raises(TypeError, match="the message class Untagged has no tag"):
        decode(b"", Untagged)
