"""Signatures under a result: what they cover, and whom the commands name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tomli_w

from cohortium.crypto.randomness import Randomness
from cohortium.crypto.signing import KeyDirectory, SigningKey
from cohortium.deployment.audit_trail import AuditTrail
from cohortium.errors import CohortiumError, RecordError, RequestError
from cohortium.messages.run import Request
from cohortium.runs.signatures import SIGNATURES, seen_signatures, sign_result, summarize
from tests.support.command_line import cohortium
from tests.support.federations import tiny_federation

LEAD, SITE, OTHER = (SigningKey.generate(Randomness.insecure_from_seed(seed)) for seed in (1, 2, 3))
DIRECTORY = KeyDirectory((OTHER.public, SITE.public))
SESSION = bytes(range(16))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one"
    tiny_federation(rounds=1, sites=2).run(folder)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_signatures_of_coordinator_and_sites_are_seen(run: Path) -> None:
    assert seen_signatures(run) == ()
    assert summarize(()) == ""
    sign_result(run, SITE, site=1, session=SESSION, releases=3)
    sign_result(run, LEAD)
    sign_result(run, LEAD)
    lead, site = seen_signatures(run, DIRECTORY)
    assert (lead.who, lead.is_valid, lead.is_vouched) == ("the coordinator", True, None)
    assert (site.who, site.is_valid, site.is_vouched) == ("site 1", True, True)
    assert str(site).endswith("as in the directory, 3 releases in run 00010203")
    assert summarize((lead, site)) == "the result is signed by the coordinator, site 1."


@pytest.mark.parametrize(
    "change",
    [
        {"role": "coordinator"},
        {"site": 0},
        {"releases": 4},
        {"session": "00" * 16},
        {"weights_sha256": "00" * 32},
        {"result_sha256": "00" * 32},
        {"key": OTHER.public.hex()},
        {"key": "ff" * 32},
        {"signature": "00" * 64},
        {"signature": ""},
    ],
)
def test_changed_signature_is_not_valid(run: Path, change: dict[str, object]) -> None:
    sign_result(run, SITE, site=1, session=SESSION, releases=3)
    (made,) = json.loads((run / SIGNATURES).read_text())
    (run / SIGNATURES).write_text(json.dumps([made | change]))
    (seen,) = seen_signatures(run, DIRECTORY)
    assert not seen.is_valid
    assert "NOT VALID" in str(seen)
    assert "NOT validly signed" in summarize((seen,))


def test_signature_is_of_every_byte_of_the_result(run: Path) -> None:
    sign_result(run, LEAD)
    path = run / "result.json"
    whole = path.read_bytes()
    for changed in (whole + b"\n", whole.replace(b'"rounds": 1', b'"rounds": 2')):
        assert changed != whole
        path.write_bytes(changed)
        assert [seen.is_valid for seen in seen_signatures(run)] == [False]
    path.write_bytes(whole)
    assert [seen.is_valid for seen in seen_signatures(run)] == [True]


def test_key_that_is_not_the_directorys_is_told(run: Path) -> None:
    sign_result(run, OTHER, site=1)
    (seen,) = seen_signatures(run, DIRECTORY)
    assert (seen.is_valid, seen.is_vouched) == (True, False)
    assert summarize((seen,)) == "the result is NOT validly signed by site 1."


@pytest.mark.parametrize("text", ["{}", "[{}]", "[1]", "\xff", "[" * 9999])
def test_damaged_signatures_are_an_error(run: Path, text: str) -> None:
    (run / SIGNATURES).write_text(text, "latin-1")
    with pytest.raises(RecordError, match="holds no signatures"):
        seen_signatures(run)


def test_unfinished_run_is_not_signed(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="not finished"):
        sign_result(tmp_path, LEAD)


def test_commands_say_whose_signatures_they_saw(run: Path, tmp_path: Path) -> None:
    LEAD.create(tmp_path / "lead.pem")
    status, out, _ = cohortium("sign", str(run), "--key", str(tmp_path / "lead.pem"))
    assert status == 0
    assert out.startswith("the coordinator: key ")
    words = "the result is signed by the coordinator."
    _, _, err = cohortium("export", str(run), "--out", str(tmp_path / "model"))
    assert words in err
    card = (tmp_path / "model" / "README.md").read_text()
    assert "The result is signed by the coordinator." in card
    cohortium("report", str(run))
    assert "Signature of the coordinator: key" in (run / "report.html").read_text()
    with pytest.raises(RequestError, match="give one"):
        cohortium("sign", str(run), "--key", "a", "--site", "b")


def test_site_countersigns_only_runs_of_its_trail(run: Path, tmp_path: Path) -> None:
    SITE.create(tmp_path / "identity.pem")
    DIRECTORY.write(tmp_path / "directory.txt")
    file = {
        "site": {
            "id": 1, "dataset_id": "chest", "signing_key": "identity.pem",
            "key_directory": "directory.txt",
        },
        "dataset": {"name": "npz", "path": "data.npz"},
        "policy": {"epsilon": 1.0, "delta": 1e-5, "unit": "site", "against": "everyone"},
    }  # fmt: skip
    (tmp_path / "site.toml").write_text(tomli_w.dumps(file))
    trail = AuditTrail(tmp_path / "audit.jsonl", 1, SITE)
    for attempt in range(2):
        trail.answered(Request(SESSION, 0, attempt, 0, None, b""), b"?", has_release=True)
    trail.answered(Request(bytes(16), 0, 0, 0, None, b""), b"?", has_release=False)
    trail.close()
    arguments = ("sign", str(run), "--site", str(tmp_path / "site.toml"), "--session")
    with pytest.raises(RequestError, match="releases in 0 runs"):
        cohortium(*arguments, "00000000")
    status, out, _ = cohortium(
        *arguments, SESSION.hex()[:8], "--key-directory", str(tmp_path / "directory.txt")
    )
    assert status == 0
    assert "site 1: key" in out
    assert "as in the directory, 2 releases in run 00010203" in out


def test_weights_of_another_result_are_not_signed(run: Path, tmp_path: Path) -> None:
    LEAD.create(tmp_path / "lead.pem")
    path = run / "result.json"
    result = json.loads(path.read_text()) | {"weights_sha256": "00" * 32}
    path.write_text(json.dumps(result))
    with pytest.raises(CohortiumError, match="weights"):
        cohortium("sign", str(run), "--key", str(tmp_path / "lead.pem"))
    assert not (run / SIGNATURES).exists()
