"""Signatures under a result: what they cover, and whom the commands name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w

from cohortium import EvaluationPlan
from cohortium.crypto.randomness import Randomness
from cohortium.crypto.signing import KeyDirectory, SigningKey
from cohortium.deployment.audit_trail import AuditTrail
from cohortium.errors import (
    CohortiumError,
    IdentityError,
    RecordError,
    RequestError,
    RunError,
    StoppedError,
)
from cohortium.messages.run import Request
from cohortium.runs.result import RESULT
from cohortium.runs.run_directory import SIGNER
from cohortium.runs.run_files import RunFiles
from cohortium.runs.signatures import SIGNATURES, seen_signatures, sign_result, summarize
from tests.support.command_line import PARTS, cohortium
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
    key = LEAD.public.hex()[:16]
    told = summarize((lead, site))
    assert told == f"the result is signed by the coordinator (key {key}…), site 1."
    assert f"site 1 (key {SITE.public.hex()[:16]}…)" in summarize(seen_signatures(run))


@pytest.mark.parametrize(
    "change",
    [
        {"role": "coordinator"},
        {"site": 0},
        {"releases": 4},
        {"session": "00" * 16},
        {"weights_sha256": "00" * 32},
        {"result_sha256": "00" * 32},
        {"study_sha256": "00" * 32},
        {"dataset_sha256": ""},
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


@pytest.mark.parametrize("name", ["study.toml", "dataset.json"])
def test_signature_is_of_the_files_that_say_what_outputs_mean(run: Path, name: str) -> None:
    sign_result(run, LEAD)
    path = run / name
    whole = path.read_bytes()
    path.write_bytes(whole + b"\n")
    assert [seen.is_valid for seen in seen_signatures(run)] == [False]
    path.unlink()
    assert [seen.is_valid for seen in seen_signatures(run)] == [False]
    path.write_bytes(whole)
    assert [seen.is_valid for seen in seen_signatures(run)] == [True]


def test_swapped_classes_are_not_signed(run: Path, tmp_path: Path) -> None:
    LEAD.create(tmp_path / "lead.pem")
    cohortium("sign", str(run), "--key", str(tmp_path / "lead.pem"))
    path = run / "dataset.json"
    facts = json.loads(path.read_text())
    facts["spec"]["task"]["names"].reverse()
    path.write_text(json.dumps(facts))
    _, _, err = cohortium("export", str(run), "--out", str(tmp_path / "model"))
    assert "the result is NOT validly signed by the coordinator." in err
    with pytest.raises(RecordError, match="not valid for this result"):
        cohortium("sign", str(run))


def test_key_that_is_not_the_directorys_is_told(run: Path) -> None:
    sign_result(run, OTHER, site=1)
    (seen,) = seen_signatures(run, DIRECTORY)
    assert (seen.is_valid, seen.is_vouched) == (True, False)
    assert summarize((seen,)) == "the result is NOT validly signed by site 1."


def test_key_of_a_site_is_not_vouched_for_as_the_coordinators(run: Path) -> None:
    sign_result(run, SITE)
    (seen,) = seen_signatures(run, DIRECTORY)
    assert (seen.is_valid, seen.is_vouched) == (True, False)
    assert summarize((seen,)) == "the result is NOT validly signed by the coordinator."


def test_wrong_key_is_refused_before_it_signs(run: Path, tmp_path: Path) -> None:
    sign_result(run, LEAD)
    before = (run / SIGNATURES).read_bytes()
    with pytest.raises(RequestError, match="by the directory, the key is a site's"):
        sign_result(run, SITE, directory=DIRECTORY, replace=True)
    with pytest.raises(RequestError, match="the key is not site 0's"):
        sign_result(run, SITE, site=0, directory=DIRECTORY)
    with pytest.raises(RequestError, match="has signed this result for the same signer already"):
        sign_result(run, OTHER)
    SITE.create(tmp_path / "site.pem")
    with pytest.raises(RequestError, match="give --replace"):
        cohortium("sign", str(run), "--key", str(tmp_path / "site.pem"))
    assert (run / SIGNATURES).read_bytes() == before
    assert sign_result(run, OTHER, replace=True).key == OTHER.public.hex()
    # A signature of another result is in nobody's way.
    (run / RESULT).write_bytes((run / RESULT).read_bytes() + b" ")
    sign_result(run, LEAD)
    (seen,) = seen_signatures(run)
    assert (seen.is_valid, seen.made.key) == (True, LEAD.public.hex())


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
    words = f"the result is signed by the coordinator (key {LEAD.public.hex()[:16]}…)."
    _, _, err = cohortium("export", str(run), "--out", str(tmp_path / "model"))
    assert words in err
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"T{words[1:]}" in card
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


def stop_before(attempt: int) -> Callable[[], bool]:
    count = iter(range(attempt))
    return lambda: next(count, None) is None


def test_run_signs_its_result_by_itself_also_after_a_resumption(tmp_path: Path) -> None:
    study, folder = tiny_federation(rounds=2, sites=2), tmp_path / "run"
    with pytest.raises(StoppedError):
        study.run(folder, stop=stop_before(1), signing_key=LEAD)
    for key in (None, OTHER):
        with pytest.raises(RequestError, match=f"begins with '{LEAD.public.hex()[:16]}"):
            study.resume(folder, signing_key=key)
    study.resume(folder, signing_key=LEAD)
    (seen,) = seen_signatures(folder)
    assert (seen.who, seen.is_valid, seen.made.key) == ("the coordinator", True, LEAD.public.hex())


def test_key_may_be_given_for_the_first_time_to_a_resumption(tmp_path: Path) -> None:
    study, folder = tiny_federation(rounds=2, sites=2), tmp_path / "run"
    with pytest.raises(StoppedError):
        study.run(folder, stop=stop_before(1))
    with pytest.raises(StoppedError):
        study.resume(folder, stop=stop_before(0), signing_key=LEAD)
    with pytest.raises(RequestError, match=r"remove .*signer and sign later"):
        study.resume(folder)
    (folder / SIGNER).unlink()
    study.resume(folder)
    assert seen_signatures(folder) == ()


def test_evaluation_is_signed_too(tmp_path: Path) -> None:
    study = tiny_federation(
        rounds=1, sites=2, holdout_fraction=0.4, evaluation=EvaluationPlan(parts=("accuracy",))
    )
    study.run(tmp_path / "run", signing_key=LEAD)
    for folder in (tmp_path / "run", tmp_path / "run" / "evaluation"):
        assert [seen.is_valid for seen in seen_signatures(folder)] == [True]


def test_there_is_never_a_result_without_its_signature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, folder = tiny_federation(rounds=1, sites=2), tmp_path / "run"

    def interrupt(*_: object) -> None:
        raise RunError("interrupted between the two files.")

    with monkeypatch.context() as patch:
        patch.setattr(RunFiles, "write_result", interrupt)
        with pytest.raises(RunError, match="interrupted"):
            study.run(folder, signing_key=LEAD)
    assert (folder / SIGNATURES).exists()
    assert seen_signatures(folder) == ()
    (folder / SIGNATURES).unlink()
    (folder / SIGNATURES).mkdir()
    with pytest.raises(RunError, match=r"cannot write .*signatures"):
        study.resume(folder, signing_key=LEAD)
    assert not (folder / "result.json").exists()
    (folder / SIGNATURES).rmdir()
    study.resume(folder, signing_key=LEAD)
    assert [seen.is_valid for seen in seen_signatures(folder)] == [True]


def test_key_of_a_site_is_refused_before_the_first_round(tmp_path: Path) -> None:
    study = tiny_federation(
        rounds=1, sites=3, aggregator="secagg", adversary="active", insecure_seeded_secrets=True
    )
    identities = study.prepare().identities
    assert identities is not None
    with pytest.raises(IdentityError, match="key of its own"):
        study.run(tmp_path / "run", signing_key=identities[1])
    assert not (tmp_path / "run").exists()
    with pytest.raises(RequestError, match="no result to sign"):
        study.run(signing_key=LEAD)


def test_command_signs_what_it_runs(tmp_path: Path) -> None:
    file, folder = tmp_path / "study.toml", tmp_path / "run"
    others = {
        "federation": {"sites": 2, "rounds": 1}, "privatizer": {"name": "none"},
        "aggregator": {"name": "plain"},
    }  # fmt: skip
    file.write_text(PARTS + tomli_w.dumps(others))
    key = tmp_path / "lead.pem"
    arguments = ("run", str(file), "--out", str(folder), "--quiet", "--sign-with", str(key))
    with pytest.raises(IdentityError, match="cannot read the key"):
        cohortium(*arguments)
    key.write_text("no key")
    key.chmod(0o600)
    with pytest.raises(IdentityError, match="Ed25519"):
        cohortium(*arguments)
    assert not folder.exists()
    key.unlink()
    LEAD.create(key)
    status, out, _ = cohortium(*(each for each in arguments if each != "--quiet"))
    assert status == 0
    assert f"signed  with the coordinator's key {LEAD.public.hex()[:16]}…" in out
    assert "Signature of the coordinator: key" in (folder / "report.html").read_text()
    with pytest.raises(RequestError, match="is finished"):
        cohortium("resume", str(folder), "--sign-with", str(key))
