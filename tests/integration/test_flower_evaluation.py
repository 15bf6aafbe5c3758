"""Five hospitals over Flower with TLS: they train, evaluate, and lose one in the evaluation."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from attrs import evolve

from cohortium import Federation
from cohortium.deployment import rehearsal
from cohortium.deployment.site_config import SiteConfig
from cohortium.deployment.unix_socket import SiteSocketServer, call_site
from cohortium.messages.codec import decode_either
from cohortium.messages.deployment import Acceptance, IdentifyReply, IdentifyRequest, Invitation
from cohortium.messages.run import Refusal, Reply, Request
from cohortium.study import toml
from cohortium.study.measurement import EvaluationPlan
from cohortium_cnn import CNN
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from cohortium_phantom import Phantom
from cohortium_secagg import SecAgg
from tests.support.flower_processes import Deployment, deployed

SITES = 5

LOST = 3
"""The hospital whose SuperNode is killed during the evaluation."""

MASKED = 2
"""The stage of an attempt in which sites send their masked vectors."""

PARTS = ("accuracy",)


def simulation() -> Federation:
    return Federation(
        dataset=Phantom(examples=1000, validation=0, test=80),
        model=CNN(width=4),
        trainer=FedSGD(sampling_rate=0.1),
        privatizer=Gaussian(epsilon=6.0, delta=1e-4, clip_norm=1.0),
        aggregator=SecAgg(reconstruction_threshold=4, num_shares=5),
        sites=SITES,
        rounds=1,
        threads=1,
        reply_timeout=300.0,
        insecure_seeded_secrets=True,
        holdout_fraction=0.4,
        evaluation=EvaluationPlan(epsilon=2.0, parts=PARTS),
    )


@contextlib.contextmanager
def severed(deployment: Deployment, site: int) -> Iterator[Path]:
    """A socket before that of a site, which kills its SuperNode during the evaluation.

    The site has measured and been charged, and its masked vector never leaves the hospital.
    """
    measuring: set[bytes] = set()

    def answer(broadcast: bytes, own: bytes) -> bytes:
        reply = call_site(
            deployment.folder / f"site-{site}" / "site.sock", broadcast, own, patience=60.0
        )
        said = decode_either(reply, Reply, Refusal, Acceptance, IdentifyReply)
        if isinstance(said, Acceptance):
            invitation = decode_either(broadcast, Invitation)
            assert isinstance(invitation, Invitation)
            if "[measurement]" in invitation.study:
                measuring.add(invitation.session)
        request = decode_either(broadcast, Request, Invitation, IdentifyRequest)
        is_masked = isinstance(said, Reply) and said.stage == MASKED
        if is_masked and isinstance(request, Request) and request.session in measuring:
            deployment.kill(f"node-{site}")
        return reply

    door = SiteSocketServer(deployment.folder / "severed.sock", answer, {os.getuid()})
    with door.open() as listener:
        threading.Thread(target=door.serve, args=(listener,), daemon=True).start()
        yield door.path


def spent(folder: Path) -> list[int]:
    """Charged attempts on the training and on the test images of a hospital."""
    site_config = SiteConfig.read(folder / "site.toml")
    with site_config.account.ledger.read_transaction() as book:
        return [sum(book.charge_counts(name).values()) for name in site_config.accounts]


def own_scores(folder: Path, site: int) -> list[dict[str, Any]]:
    """The exact scores in a hospital's folder, the oldest first."""
    files = [*(folder / f"site-{site}" / "evaluations").iterdir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    found = [json.loads(path.read_text()) for path in files]
    return [each["scores"] for each in sorted(found, key=lambda each: str(each["written"]))]


def pooled(scores: list[dict[str, Any]]) -> float:
    """The accuracy on all hospitals' images together."""
    images = sum(each["images"] for each in scores)
    hits = sum(each["images"] * each["metrics"]["accuracy"] for each in scores)
    return float(hits / images)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_hospital_lost_in_evaluation_leaves_scores_of_others(tmp_path: Path) -> None:
    folder = tmp_path / "deployment"
    rehearsal.write_rehearsal(simulation().prepare(), folder)
    file = toml.read(folder / "study.toml", what="the study")
    file["engine"]["connect_timeout"] = 300.0
    (folder / "study.toml").write_text(tomli_w.dumps(file))
    with (
        deployed(folder, sites=SITES) as deployment,
        severed(deployment, LOST) as before,
    ):
        deployment.start_all({LOST: before})
        deployment.run().wait(900)
        log = deployment.log("lead")
        assert f"node-{LOST}" not in deployment.processes, log[-4000:]

    run = folder / "run"
    assert (run / "evaluation" / "result.json").exists(), log[-4000:]
    trained = json.loads((run / "result.json").read_text())
    evaluated = json.loads((run / "evaluation" / "result.json").read_text())
    assert trained["dropouts"] == 0
    assert evaluated["weights_sha256"] == trained["weights_sha256"]
    measured = evaluated["measured"]
    assert measured["contributors"] == SITES - 1
    main = measured["estimates"][0]
    assert main["metric"] == "accuracy"
    # The exact scores of the four hospitals, which only they know, are close to the noised one.
    exact = pooled([own_scores(folder, site)[0] for site in range(SITES) if site != LOST])
    reach = main["noise_high"] - main["noise_low"]
    assert 0 < reach < 0.5
    assert abs(main["value"] - exact) < reach
    assert main["low"] <= main["noise_low"]
    assert main["noise_high"] <= main["high"]

    # Each hospital was charged, the lost one too, and has its own exact figures.
    for site in range(SITES):
        place = folder / f"site-{site}"
        assert spent(place) == [1, 1]
        own = own_scores(folder, site)
        assert len(own) == 1
        told = f"accuracy {own[0]['metrics']['accuracy']:.2%}"
        assert told in (folder / f"site-{site}.log").read_text()

    # The same sites in one process train the same weights.
    twin = evolve(simulation(), evaluation=None).run()
    assert twin.weights_sha256 == trained["weights_sha256"]
