"""Five hospitals, each with its processes, over Flower with TLS and registered nodes."""

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

import numpy as np
import pytest
import tomli_w
from attrs import evolve

from cohortium import Federation
from cohortium.crypto.randomness import Randomness
from cohortium.crypto.signing import SigningKey
from cohortium.deployment import rehearsal
from cohortium.deployment.site_config import SiteConfig
from cohortium.deployment.unix_socket import SiteSocketServer, call_site
from cohortium.messages.codec import decode_either
from cohortium.messages.deployment import Acceptance, IdentifyReply
from cohortium.messages.run import Refusal, Reply
from cohortium.runs.signatures import seen_signatures
from cohortium.study import toml
from cohortium.study.measurement import EvaluationPlan
from cohortium_cnn import CNN
from cohortium_fedsgd import FedSGD
from cohortium_flower import Flower
from cohortium_gaussian import Gaussian
from cohortium_phantom import Phantom
from cohortium_secagg import SecAgg
from tests.support.federations import FaultyEngine
from tests.support.flower_processes import DEPLOY, PATIENCE, Deployment, deployed

SITES = 5

LOST = 3
"""The hospital whose SuperNode is killed."""

AMISS = 1
"""The hospital whose data are not yet what the study declares."""

MASKED = 2
"""The stage of an attempt in which sites train, and send their masked vectors."""


def simulation() -> Federation:
    return Federation(
        dataset=Phantom(examples=1000, validation=0, test=80),
        model=CNN(width=4),
        trainer=FedSGD(sampling_rate=0.1),
        privatizer=Gaussian(epsilon=6.0, delta=1e-4, clip_norm=1.0),
        aggregator=SecAgg(reconstruction_threshold=4, num_shares=5),
        sites=SITES,
        rounds=2,
        threads=1,
        reply_timeout=300.0,
        adversary="active",
        insecure_seeded_secrets=True,
        holdout_fraction=0.4,
        evaluation=EvaluationPlan(epsilon=2.0, parts=("accuracy",)),
    )


def is_masked_vector(reply: bytes) -> bool:
    message = decode_either(reply, Reply, Refusal, Acceptance, IdentifyReply)
    return isinstance(message, Reply) and message.stage == MASKED


@contextlib.contextmanager
def severed(deployment: Deployment, site: int) -> Iterator[Path]:
    """A socket before that of a site, which kills its SuperNode at its first masked vector.

    So the site has trained, been charged and masked, and its vector never leaves the hospital.
    """
    is_killed = False

    def answer(broadcast: bytes, own: bytes) -> bytes:
        reply = call_site(
            deployment.folder / f"site-{site}" / "site.sock", broadcast, own, patience=60.0
        )
        nonlocal is_killed
        if is_masked_vector(reply) and not is_killed:
            is_killed = True
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
    with np.load(kept) as data:
        smaller = {
            name: values[:, ::2, ::2] if name.endswith("_images") else values
            for name, values in data.items()
        }
    np.savez(own, **smaller)
    yield
    kept.replace(own)


def spent(folder: Path) -> list[int]:
    """Charged attempts on the training and on the test images of a hospital."""
    site_config = SiteConfig.read(folder / "site.toml")
    with site_config.account.ledger.read_transaction() as book:
        return [sum(book.charge_counts(name).values()) for name in site_config.accounts]


def own_scores(folder: Path) -> dict[str, Any]:
    """The exact scores in a hospital's folder, which has those of one evaluation."""
    files = [*(folder / "evaluations").iterdir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    (path,) = (path for path in files if path.suffix == ".json")
    scores: dict[str, Any] = json.loads(path.read_text())["scores"]
    return scores


def pooled(scores: list[dict[str, Any]]) -> float:
    """The accuracy on all hospitals' images together."""
    images = sum(each["images"] for each in scores)
    hits = sum(each["images"] * each["metrics"]["accuracy"] for each in scores)
    return float(hits / images)


def rounds_of(run: Path) -> list[dict[str, Any]]:
    text = (run / "events.jsonl").read_text()
    lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [e for e in map(json.loads, lines) if e.get("event") == "RoundCompleted"]


def check_evaluation(folder: Path, weights: str) -> dict[str, Any]:
    """Compare the evaluation with the hospitals' own figures; what it measured."""
    evaluated = json.loads((folder / "run" / "evaluation" / "result.json").read_text())
    assert evaluated["weights_sha256"] == weights
    measured = evaluated["measured"]
    assert measured["contributors"] == SITES - 1
    main = measured["estimates"][0]
    assert main["metric"] == "accuracy"
    # The exact scores of the hospitals, which only they know, are close to the noised one.
    places = [folder / f"site-{site}" for site in range(SITES) if site != LOST]
    exact = pooled([own_scores(place) for place in places])
    reach = main["noise_high"] - main["noise_low"]
    assert 0 < reach < 0.5
    assert abs(main["value"] - exact) < reach
    assert main["low"] <= main["noise_low"]
    assert main["noise_high"] <= main["high"]

    # Each hospital was charged for each attempt that it heard of, the lost one too.
    assert spent(folder / f"site-{LOST}") == [1, 0]
    for place in places:
        assert spent(place) == [2, 1]
        told = f"accuracy {own_scores(place)['metrics']['accuracy']:.2%}"
        assert told in (folder / f"{place.name}.log").read_text()
    found: dict[str, Any] = measured
    return found


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_supernode_lost_during_masking_drops_its_site(tmp_path: Path) -> None:
    """Against a coordinator that may lie, with nodes that are registered; first a dry run.

    The round goes on without its vector, the next one and the evaluation without the hospital.
    """
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
        stranger = deployment.start_stranger()

        with other_images(folder / f"site-{AMISS}"):
            deployment.run(**{"dry-run": "true"}).wait(PATIENCE)
        log = deployment.log("lead")
        assert "1 of 5 sites do not take part" in log, log[-4000:]
        assert f"site {AMISS}: the study declares uint8 images of shape (3, 28, 28)" in log
        assert not (folder / "run").exists()

        # Nobody has registered its key.
        assert stranger.wait(PATIENCE) != 0
        assert deployment.log("superlink").count("Activated node") == SITES

        SigningKey.generate(Randomness.insecure_from_seed(9)).create(folder / "lead.pem")
        deployment.run(**{"sign-with": json.dumps(str(folder / "lead.pem"))}).wait(900)
        run, log = folder / "run", deployment.log("lead")
        assert f"node-{LOST}" not in deployment.processes, log[-4000:]
    assert (run / "evaluation" / "result.json").exists(), log[-4000:]
    for signed in (run, run / "evaluation"):
        assert [(seen.who, seen.is_valid) for seen in seen_signatures(signed)] == [
            ("the coordinator", True)
        ]
    result = json.loads((run / "result.json").read_text())
    rounds = rounds_of(run)
    assert [event["dropped"] for event in rounds] == [[LOST], [LOST]]
    lost = [[stage["dropped"] for stage in event["stages"]].index([LOST]) for event in rounds]
    assert lost == [MASKED, 0]
    assert result["dropouts"] == 2
    assert result["guarantee"]["simulation"]
    assert result["accuracy"] is not None

    measured = check_evaluation(folder, weights=result["weights_sha256"])

    # The same in one process, where the vector of the lost site does not come, nor anything after.
    is_gone = False

    def tamper(_count: int, site: int, reply: bytes) -> bytes | None:
        nonlocal is_gone
        is_gone = is_gone or (site == LOST and is_masked_vector(reply))
        return None if site == LOST and is_gone else reply

    twin = evolve(simulation(), engine=FaultyEngine(tamper)).run()
    assert [list(e.contributors) for e in twin.history] == [e["contributors"] for e in rounds]
    assert twin.weights_sha256 == result["weights_sha256"]
    assert twin.evaluation is not None
    assert twin.evaluation.measured is not None
    assert list(twin.evaluation.measured.sums) == measured["sums"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_run_of_a_killed_server_app_continues(tmp_path: Path) -> None:
    rounds, folder = 3, tmp_path / "deployment"
    federation = evolve(
        simulation(),
        aggregator=SecAgg(reconstruction_threshold=2),
        sites=3,
        min_contributors=3,
        rounds=rounds,
        retries=1,
        holdout_fraction=0.0,
        evaluation=None,
    )
    rehearsal.write_rehearsal(federation.prepare(), folder)
    run = folder / "run"
    with deployed(folder, sites=3) as deployment:
        deployment.start_all()
        deployment.run()
        deployment.until(lambda: (run / "events.jsonl").exists() and len(rounds_of(run)) > 0)
        deployment.kill_server_app()
        deployment.kill("lead")
        assert not (run / "result.json").exists()

        deployment.run(resume=json.dumps(str(run))).wait(900)
        log = deployment.log("lead")
    assert (run / "result.json").exists(), log[-4000:]
    assert [event["round"] for event in rounds_of(run)] == [*range(rounds)]
    assert json.loads((run / "result.json").read_text())["rounds"] == rounds
    for site in range(3):
        (charged,) = spent(folder / f"site-{site}")
        assert charged in {rounds, rounds + 1}  # the attempt that was under way may count


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
