"""Five hospitals, each with its processes, over Flower with TLS and registered nodes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from attrs import evolve

from cohortium import Federation
from cohortium.data.npz import data_dir
from cohortium.deployment import rehearsal
from cohortium.deployment.site_config import SiteConfig
from cohortium.deployment.unix_socket import SiteSocketServer, call_site
from cohortium.messages.codec import decode_either
from cohortium.messages.deployment import Acceptance, IdentifyReply
from cohortium.messages.run import Refusal, Reply
from cohortium.study import toml
from cohortium_cnn import CNN
from cohortium_fedsgd import FedSGD
from cohortium_flower import Flower
from cohortium_gaussian import Gaussian
from cohortium_medmnist import MedMNIST
from cohortium_secagg import SecAgg
from tests.support.federations import FaultyEngine
from tests.support.flower_processes import DEPLOY, PATIENCE, Deployment, deployed

LOST = 3
"""The hospital whose SuperNode is killed."""

AMISS = 1
"""The hospital whose data are not yet what the study declares."""

MASKED = 2
"""The stage of an attempt in which sites train, and send their masked vectors."""


def simulation() -> Federation:
    return Federation(
        dataset=MedMNIST(flag="pneumoniamnist", download=False),
        model=CNN(width=8),
        trainer=FedSGD(sampling_rate=0.1),
        privatizer=Gaussian(epsilon=6.0, delta=1e-4, clip_norm=1.0),
        aggregator=SecAgg(reconstruction_threshold=4, num_shares=5),
        sites=5,
        rounds=2,
        threads=1,
        reply_timeout=300.0,
        adversary="active",
        insecure_seeded_secrets=True,
    )


def is_masked_vector(reply: bytes) -> bool:
    message = decode_either(reply, Reply, Refusal, Acceptance, IdentifyReply)
    return isinstance(message, Reply) and message.stage == MASKED


@contextlib.contextmanager
def severed(deployment: Deployment, site: int) -> Iterator[Path]:
    """A socket before that of a site, which kills its SuperNode when its masked vector is made.

    So the site has trained, been charged and masked, and its vector never leaves the hospital.
    """

    def answer(broadcast: bytes, own: bytes) -> bytes:
        reply = call_site(
            deployment.folder / f"site-{site}" / "site.sock", broadcast, own, patience=60.0
        )
        if is_masked_vector(reply):
            deployment.kill(f"node-{site}")
        return reply

    door = SiteSocketServer(deployment.folder / "severed.sock", answer, {os.getuid()})
    with door.open() as listener:
        threading.Thread(target=door.serve, args=(listener,), daemon=True).start()
        yield door.path


@contextlib.contextmanager
def other_images(folder: Path) -> Iterator[None]:
    """For a time, the hospital's file holds images of another size."""
    own, kept = folder / "data.npz", folder / "kept.npz"
    own.rename(kept)
    np.savez(
        own,
        train_images=np.zeros((9, 14, 14), np.uint8),
        train_labels=np.arange(9) % 2,
        classes=np.array(["normal", "pneumonia"]),
    )
    yield
    kept.replace(own)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(data_dir() is None, reason="needs PneumoniaMNIST under COHORTIUM_DATA")
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_supernode_lost_during_masking_drops_its_site(tmp_path: Path) -> None:
    """Against a coordinator that may lie, with nodes that are registered; first a dry run.

    The round goes on without its vector, and the next one without the hospital.
    """
    folder = tmp_path / "deployment"
    rehearsal.write_rehearsal(simulation().prepare(), folder)
    file = toml.read(folder / "study.toml", what="the study")
    file["engine"]["connect_timeout"] = 300.0
    (folder / "study.toml").write_text(tomli_w.dumps(file))
    with (
        deployed(folder, sites=5) as deployment,
        severed(deployment, LOST) as before,
    ):
        deployment.start_all({LOST: before})
        stranger = deployment.start_stranger()

        with other_images(folder / f"site-{AMISS}"):
            deployment.run(**{"dry-run": "true"}).wait(PATIENCE)
        log = deployment.log("lead")
        assert "1 of 5 sites do not take part" in log, log[-4000:]
        assert f"site {AMISS}: the study declares uint8 images of shape (1, 28, 28)" in log
        assert not (folder / "run").exists()

        # Nobody has registered its key.
        assert stranger.wait(PATIENCE) != 0
        assert deployment.log("superlink").count("Activated node") == 5

        deployment.run().wait(900)
        log = deployment.log("lead")
        assert f"node-{LOST}" not in deployment.processes
    assert (folder / "run" / "result.json").exists(), log[-4000:]
    result = json.loads((folder / "run" / "result.json").read_text())
    lines = (folder / "run" / "events.jsonl").read_text().splitlines()
    rounds = [e for e in map(json.loads, lines) if e.get("event") == "RoundCompleted"]
    assert [event["dropped"] for event in rounds] == [[LOST], [LOST]]
    lost = [[stage["dropped"] for stage in event["stages"]] for event in rounds]
    assert [phases.index([LOST]) for phases in lost] == [MASKED, 0]
    assert result["dropouts"] == 2
    assert result["guarantee"]["simulation"]
    assert result["accuracy"] is not None

    # The same in one process, where the vector of the lost site does not come, nor anything after.
    is_gone = False

    def tamper(_count: int, site: int, reply: bytes) -> bytes | None:
        nonlocal is_gone
        is_gone = is_gone or (site == LOST and is_masked_vector(reply))
        return None if site == LOST and is_gone else reply

    twin = evolve(simulation(), engine=FaultyEngine(tamper)).run()
    assert [list(e.contributors) for e in twin.history] == [e["contributors"] for e in rounds]
    assert twin.weights_sha256 == result["weights_sha256"]


def test_docs_deploy_files_match_deployment(tmp_path: Path) -> None:
    deployment = Federation.read(DEPLOY / "study.toml")
    assert isinstance(deployment.engine, Flower)
    assert deployment.data is not None
    assert deployment.partitioner is None
    file = toml.read(DEPLOY / "site.toml", what="the site file")
    assert os.path.isabs(file["dataset"]["path"])  # noqa: PTH117
    assert set(file["policy"]["allowed_plugins"]) == {
        f"cohortium:{name}" for name in ("descriptor", "fedsgd", "gaussian", "secagg")
    }
    text = (DEPLOY / "site.toml").read_text()
    (tmp_path / "site.toml").write_text(text.replace("/etc/cohortium/directory.txt", ""))
    site_config = SiteConfig.read(tmp_path / "site.toml")
    assert site_config.policy.allowed_local_values == ()
    assert not site_config.policy.insecure_rehearsal
