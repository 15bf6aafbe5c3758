"""The privacy officer's first hour: every command of the page, with a real site."""

from __future__ import annotations

import datetime as dt
import os
import re
import subprocess
from pathlib import Path

import pytest

from cohortium.deployment.unix_socket import call_site
from cohortium.messages.codec import decode_either, encode
from cohortium.messages.deployment import Acceptance
from cohortium.messages.run import Refusal, Reply
from tests.support.command_server import write_script
from tests.support.rehearsed_site import SITES, coordinator_of, copy_site, rehearse

PAGE = Path(__file__).parents[2] / "docs" / "privacy-officer.md"

BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)

DIGEST, LAST_DAY = "3f2a90bc41d7", "2027-03-31"
"""Digest and date of the page, which stand for those of the test."""

PATIENCE = 60.0


@pytest.mark.slow
def test_first_hour(tmp_path: Path) -> None:
    invitation = rehearse(tmp_path / "all")
    site = copy_site(tmp_path / "all", tmp_path / "site", approve=True)
    scripts = write_script(tmp_path / "bin")
    environment = os.environ | {"PATH": f"{scripts}:{os.environ['PATH']}"}
    digest = DIGEST

    def follow(number: int) -> str:
        """Run a block of the page, and return what it prints."""
        tomorrow = dt.datetime.now(dt.UTC).date() + dt.timedelta(days=1)
        block = BLOCKS[number].replace(DIGEST, digest).replace(LAST_DAY, str(tomorrow))
        done = subprocess.run(
            ["bash", "-e", "-c", block.replace("/tmp/head", str(tmp_path / "head"))],
            cwd=site, env=environment, capture_output=True, encoding="utf-8", check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def say(message: bytes) -> Acceptance | Refusal | Reply:
        reply = call_site(site / "site.sock", message, b"", patience=PATIENCE)
        found = decode_either(reply, Acceptance, Refusal, Reply)
        assert isinstance(found, Acceptance | Refusal | Reply)
        return found

    with subprocess.Popen(
        [str(scripts / "cohortium"), "site", "site.toml"], cwd=site, env=environment,
        stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            refusal = say(encode(invitation))
            assert isinstance(refusal, Refusal)
            assert refusal.code == "approval"
            listed = follow(0)
            digest = listed.splitlines()[1].split()[0]
            assert digest in refusal.reason
            assert "waiting" in listed
            shown = follow(1)
            assert re.search(r"now  ε = 0 at δ", shown)
            assert re.search(r"after a run  ε = [\d.]+, of a budget of ε", shown)
            assert f"study-{digest}.html" in shown
            text = (site / f"study-{digest}.html").read_text("utf-8")
            assert "Who can learn what" in text
            assert "is approved for one run" in follow(2)
            assert isinstance(say(encode(invitation)), Acceptance)
            coordinator = coordinator_of(invitation)
            coordinator.begin_attempt(0, 0, range(SITES))
            assert isinstance(say(coordinator.next_requests().broadcast), Reply)
            assert f"answered: session {invitation.session.hex()[:12]}" in follow(3)
            assert "none altered" in follow(4)
            assert "it contains the head that was noted" in follow(5)
            assert "nothing more of it leaves" in follow(6)
            coordinator.begin_attempt(1, 1, range(SITES))
            refusal = say(coordinator.next_requests().broadcast)
            assert isinstance(refusal, Refusal)
            assert refusal.code == "approval"
            assert "none altered" in follow(4)
            assert len(BLOCKS) == 7
        finally:
            process.terminate()
