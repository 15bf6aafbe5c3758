"""Attack, bounds, signature and trail as people meet them: with processes of their own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w

from cohortium.crypto.randomness import Randomness
from cohortium.crypto.signing import SigningKey
from cohortium.deployment.trail_check import check_trail
from cohortium.deployment.trail_entries import Answered, decode_entry
from cohortium.deployment.unix_socket import call_site
from cohortium.messages.codec import decode_either, encode
from cohortium.messages.deployment import Acceptance
from cohortium.messages.run import Refusal, Reply
from cohortium.reporting import wording
from cohortium.runs.signatures import seen_signatures
from cohortium.storage.hash_chain import links
from tests.support.command_line import PARTS
from tests.support.command_server import command, server
from tests.support.rehearsed_site import SITES, coordinator_of, copy_site, rehearse

PATIENCE = 120.0

TINY = (
    *("--set", "dataset.validation=0", "--set", "dataset.test=64", "--steps", "2"),
    *("--set", "partitioner.name=iid", "--set", "aggregator.name=plain"),
)


@pytest.mark.slow
def test_attack_in_its_own_process(tmp_path: Path) -> None:
    """One study with an image at each hospital, without any protection; then with noise."""
    one = ("--set", "federation.sites=8", "--set", "dataset.examples=8")
    bare = ("--set", "privatizer.name=none", "--set", "trainer.sampling_rate=1.0")
    is_open = command(
        "attack", *TINY, *one, *bare, "--out", "open.html", cwd=tmp_path, environment=os.environ
    )
    assert is_open.returncode == 1, is_open.stderr
    assert "What this study's coordinator sees. This attack found the only image" in is_open.stdout
    assert "It is number 1 of 65 candidates" in is_open.stdout
    page = tmp_path / "open.html"
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert page.read_text("utf-8").count("<img") >= 4
    noised = command(
        "attack", *TINY, "--set", "federation.sites=3", "--set", "dataset.examples=60", "--json",
        "--out", "noised.html", cwd=tmp_path, environment=os.environ,
    )  # fmt: skip
    assert noised.returncode == 0, noised.stderr
    found = {each["release"]: each for each in json.loads(noised.stdout)["releases"]}
    assert (found["bare"]["found"], found["bare"]["rank"]) == (True, 1)
    assert not found["seen"]["found"]
    assert found["seen"]["p_value"] > 0.001
    assert "The guarantee bounds every attack" in found["seen"]["sentence"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["noised.html", "open.html"]


@pytest.mark.slow
def test_command_line_states_the_bound_on_membership_and_signs_it(tmp_path: Path) -> None:
    others = {
        "federation": {"sites": 2, "rounds": 2},
        "privatizer": {"name": "gaussian", "epsilon": 4.0, "delta": 1e-3},
        "aggregator": {"name": "plain"},
        "trainer": {"name": "fedsgd", "sampling_rate": 0.5},
    }
    parts = PARTS.split("[trainer]", maxsplit=1)[0]
    (tmp_path / "study.toml").write_text(parts + tomli_w.dumps(others))
    key = SigningKey.generate(Randomness.insecure_from_seed(1))
    key.create(tmp_path / "lead.pem")
    done = command(
        "run", "study.toml", "--out", "run", "--quiet", "--sign-with", "lead.pem",
        cwd=tmp_path, environment=os.environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))
    rates = [(m["false_positive_rate"], m["true_positive_rate"]) for m in result["membership"]]
    assert [rate for rate, _ in rates] == [0.001, 0.01]
    # Above guessing, and far below the bound by ε alone.
    assert all(alarms < found < 54.7 * alarms for alarms, found in rates)
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    for alarms, found in rates:
        assert f"1 in {round(1 / alarms):,} that did not, finds at most" in page
        assert wording._rate(found) in page
    (seen,) = seen_signatures(tmp_path / "run")
    assert (seen.is_valid, seen.made.key) == (True, key.public.hex())


@contextlib.contextmanager
def running(site: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A site's process, alone in a process group."""
    words = [*server().command("cohortium.cli", "main", "cohortium"), "site", "site.toml"]
    with subprocess.Popen(words, cwd=site, stderr=subprocess.DEVNULL, process_group=0) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def answers(site: Path) -> set[str]:
    """Hashes of the answers that the trail has, after a check by the command."""
    done = command("trail", "site.toml", "--check", cwd=site, environment=os.environ)
    assert done.returncode == 0, done.stderr
    assert "none altered" in done.stdout
    with (site / "audit.jsonl").open("rb") as file:
        entries = [decode_entry(link) for link in links(file)]
    return {entry.sha256 for entry in entries if isinstance(entry, Answered)}


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["while it computes", "after its answer"])
def test_trail_of_a_killed_site_has_every_answer_that_left(tmp_path: Path, moment: str) -> None:
    invitation = rehearse(tmp_path / "all")
    site = copy_site(tmp_path / "all", tmp_path / "site")
    coordinator, left = coordinator_of(invitation), set[str]()

    def say(message: bytes) -> Acceptance | Refusal | Reply:
        reply = call_site(site / "site.sock", message, b"", patience=PATIENCE)
        found = decode_either(reply, Acceptance, Refusal, Reply)
        if isinstance(found, Reply):
            left.add(hashlib.sha256(reply).hexdigest())
        assert isinstance(found, Acceptance | Refusal | Reply)
        return found

    def request(attempt: int) -> bytes:
        coordinator.begin_attempt(attempt, attempt, range(SITES))
        return coordinator.next_requests().broadcast

    with running(site) as process:
        assert isinstance(say(encode(invitation)), Acceptance)
        asking = threading.Thread(target=say, args=(request(0),))
        asking.start()
        if moment == "after its answer":
            asking.join()
            assert len(left) == 1
        os.killpg(process.pid, signal.SIGKILL)
    assert left <= answers(site)
    with running(site):
        # The call is repeated meanwhile. It gets the same answer, or a refusal.
        asking.join()
        assert isinstance(say(request(1)), Reply)
    assert left <= answers(site)
    assert check_trail(site / "audit.jsonl").counts["started"] == 2
