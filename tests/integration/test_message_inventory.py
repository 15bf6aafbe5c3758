"""Nothing else leaves: every field of every message is accounted for, and a run shows no other.

The table says why each field may be sent.  A field that is added has to be entered here, with its
reason; the run in two worlds then holds the reason to what is really sent.
"""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from cohortium.auditing import audit_transcript
from cohortium.auditing.harness import InProcessRun, Recording
from cohortium.auditing.transcript import fields
from cohortium.messages import deployment, run
from cohortium.messages.codec import Message
from cohortium.runs.prepare import PreparedStudy
from cohortium_fedavg import FedAvg
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from cohortium_secagg import _messages as secagg
from tests.support.federations import QuadrantImages, tiny_federation

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
    "request.session": PLACE,
    "request.round": PLACE,
    "request.attempt": PLACE,
    "request.stage": PLACE,
    "request.weights": SUM,
    "request.body": NESTED,
    "request.plan_state": SUM,
    "request.server_state": SUM,
    "reply.attempt": PLACE,
    "reply.stage": PLACE,
    "reply.body": NESTED,
    "refusal.attempt": PLACE,
    "refusal.stage": PLACE,
    "refusal.code": REFUSAL,
    "refusal.reason": REFUSAL,
    "identify-request.challenge": "drawn by the coordinator",
    "identify-reply.site": PLACE,
    "identify-reply.signature": "a signature over a challenge and the site's number",
    "invitation.session": PLACE,
    "invitation.study": STUDY,
    "invitation.directory": STUDY,
    "invitation.versions": STUDY,
    "acceptance.session": PLACE,
    "acceptance.site": PLACE,
    "acceptance.examples": "declared by the hospital in its site file, never counted",
    "acceptance.versions": "of software at the site; no data in it",
    "advertise-keys-request.attempt": PLACE,
    "advertise-keys-request.tagging": "drawn by the coordinator: a public key",
    "keys.sealing": KEY,
    "keys.masking": KEY,
    "signed-keys.sealing": KEY,
    "signed-keys.masking": KEY,
    "signed-keys.signature": SIGNED,
    "share-keys-request.attempt": PLACE,
    "share-keys-request.neighbours": KEY,
    "share-keys-among-all-request.attempt": PLACE,
    "share-keys-among-all-request.roster": KEY,
    "sealed-shares.sealed": SEALED,
    "sealed-shares.commitment": "a hash of a mask seed that was drawn by the site",
    "sealed-shares.seeds": "hashes of uniform shares of that seed",
    "sealed-shares.keys": "hashes of uniform shares of a key that was drawn by the site",
    "masked-vector-request.attempt": PLACE,
    "masked-vector-request.sealed": SEALED,
    "masked-vector-request.next_tagging": "drawn by the coordinator: a public key",
    "masked-vector.packed": RELEASE,
    "masked-vector.tag": TAG,
    "masked-vector.next_keys": KEY,
    "unmask-request.attempt": PLACE,
    "unmask-request.survivors": CHOICE,
    "unmask-request.next_neighbours": KEY,
    "consistency-request.attempt": PLACE,
    "consistency-request.survivors": CHOICE,
    "consistency-check.signature": SIGNED,
    "confirmed-unmask-request.attempt": PLACE,
    "confirmed-unmask-request.signatures": SIGNED,
    "confirmed-unmask-request.next_roster": KEY,
    "unmasking-shares.seeds": SHARE,
    "unmasking-shares.keys": SHARE,
    "unmasking-shares.next_shares": "shares sealed between two sites, and hashes of them",
}
"""Why each field of each message may be sent."""

STAY = {"completed-stage": "an entry of the site's own journal, which is never sent"}


def sent() -> dict[str, type[Message]]:
    """Every message of the wire and of the aggregators that has one, by its tag."""
    found: dict[str, type[Message]] = {}
    for module in (run, deployment, secagg):
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Message):
                tag = value.__struct_config__.tag
                if tag is not None and tag not in STAY:
                    assert found.get(str(tag), value) is value, f"two messages are called {tag}"
                    found[str(tag)] = value
    return found


def test_inventory_covers_every_message_field() -> None:
    declared = {
        f"{name}.{field}" for name, kind in sent().items() for field in kind.__struct_fields__
    }
    assert declared == set(COVERED)
    assert msgspec.structs.fields(run.Reply)[-1].name == "body"


TRAINERS = {"fedsgd": FedSGD(sampling_rate=1.0), "fedavg": FedAvg(local_steps=2, batch_size=1000)}
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
FAST_EXAMPLE = "secagg-fedsgd-example-active"

RUNS["adaptive"] = RUNS["secagg-fedsgd-example-active"] | {
    "privatizer": Gaussian(epsilon=20.0, target_unclipped=0.5),
}
RUNS["adaptive-site"] = RUNS["secagg-fedavg-site-active"] | {
    "privatizer": Gaussian(epsilon=20.0, unit="site", target_unclipped=0.5),
}
RUNS["shared-adaptive"] = {
    "aggregator": "secagg",
    "trainer": TRAINERS["fedsgd"],
    "privatizer": Gaussian(epsilon=20.0, noise="distributed", target_unclipped=0.5),
    "max_colluding": 1,
    "min_contributors": 4,
}
RUNS["shared"] = {
    "aggregator": "secagg",
    "trainer": TRAINERS["fedsgd"],
    "privatizer": Gaussian(epsilon=20.0, noise="distributed"),
    "max_colluding": 1,
    "min_contributors": 4,
}


def prepared(name: str) -> PreparedStudy:
    return tiny_federation(dataset=QuadrantImages(examples=60), sites=5, **RUNS[name]).prepare()


def inventoried() -> list[object]:
    """Every run; those whose noise takes seconds to calculate are slow, but for one."""
    return [
        pytest.param(
            name, marks=[pytest.mark.slow] if "example" in name and name != FAST_EXAMPLE else []
        )
        for name in RUNS
    ]


@pytest.mark.parametrize("name", inventoried())
def test_run_sends_only_inventoried_fields(name: str) -> None:
    study = prepared(name)
    finding = audit_transcript(study)
    assert not finding.is_refuted, finding
    partition = {
        site: study.splits.train.select(indices) for site, indices in enumerate(study.partition)
    }
    play = InProcessRun.of(
        study, study.run_config, partition, {site: Recording().record for site in partition}
    )
    assert len(list(play.run_rounds(1))) == 1
    for message in play.messages:
        for path, _ in fields(message.data):
            assert not path or set(named(path)) & set(COVERED), path


def named(path: str) -> list[str]:
    """The message fields on a path: "reply.body.masked-vector.packed" has two."""
    tags = sent()
    return [".".join(pair) for pair in itertools.pairwise(path.split(".")) if pair[0] in tags]
