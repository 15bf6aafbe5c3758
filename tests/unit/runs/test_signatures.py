"""Signatures under a result: what they cover, and whom the commands name."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
import tomli_w

from cohortium import EvaluationPlan, Federation
from cohortium.crypto.randomness import Randomness
from cohortium.crypto.signing import KeyDirectory, SigningKey
from cohortium.deployment import rehearsal
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
from cohortium.runs.invite import shared_digest, shared_tables
from cohortium.runs.result import RESULT
from cohortium.runs.run_files import RunFiles
from cohortium.runs.signatures import (
    SIGNATURES,
    Signature,
    seen_signatures,
    sign_result,
    summarize,
)
from cohortium.runs.signer import SIGNER
from cohortium.runs.stated_result import SiteReleases
from cohortium.study import toml
from tests.support.command_line import PARTS, cohortium
from tests.support.corridor import serving
from tests.support.federations import tiny_federation

LEAD, SITE, OTHER = (SigningKey.generate(Randomness.insecure_from_seed(seed)) for seed in (1, 2, 3))
DIRECTORY = KeyDirectory((OTHER.public, SITE.public))
STUDY = "5d" * 32


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one"
    tiny_federation(rounds=1, sites=2).run(folder)
    return folder


def releases(run: Path, *attempts: tuple[int, int]) -> SiteReleases:
    """What the trail of a site would have of this run."""
    session = json.loads((run / RESULT).read_text())["session"]
    return SiteReleases(
        session=bytes.fromhex(session),
        study=STUDY,
        tables=tables(run),
        attempts=attempts or ((0, 0),),
    )


def tables(run: Path) -> str:
    """Digest of the study that a site of this run would have accepted."""
    return shared_digest(shared_tables(toml.read(run / "study.toml", what="the study")))


def forged(run: Path, **fields: object) -> None:
    """Put a signature of site 1 there that its key has made, with the fields of a liar."""

    def digest(name: str) -> str:
        return hashlib.sha256((run / name).read_bytes()).hexdigest()

    result = json.loads((run / RESULT).read_text())
    known = {
        "role": "site", "site": 1, "session": result.get("session", ""), "study": STUDY,
        "releases": 1, "result_sha256": digest(RESULT),
        "weights_sha256": result["weights_sha256"], "study_sha256": digest("study.toml"),
        "dataset_sha256": digest("dataset.json"), "key": SITE.public.hex(),
    } | fields  # fmt: skip
    made = msgspec.convert(known, Signature)
    signature = SITE.sign(made.signed_text).hex()
    stored = {name: value for name, value in known.items() if value is not None}
    (run / SIGNATURES).write_text(json.dumps([stored | {"signature": signature}]))


def without_session(run: Path) -> None:
    """Make the result that of an older version."""
    result = json.loads((run / RESULT).read_text())
    del result["session"]
    (run / RESULT).write_text(json.dumps(result))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_signatures_of_coordinator_and_sites_are_seen(run: Path) -> None:
    assert seen_signatures(run) == ()
    assert summarize(()) == ""
    sign_result(run, SITE, site=1, releases=releases(run))
    sign_result(run, LEAD)
    sign_result(run, LEAD)
    lead, site = seen_signatures(run, DIRECTORY)
    assert (lead.who, lead.is_valid, lead.is_vouched) == ("the coordinator", True, None)
    assert (site.who, site.is_valid, site.is_vouched) == ("site 1", True, True)
    session = json.loads((run / RESULT).read_text())["session"]
    assert str(site).endswith(f"as in the directory, 1 releases in run {session[:8]}")
    assert (site.made.session, site.made.study) == (session, STUDY)
    key = LEAD.public.hex()[:16]
    told = summarize((lead, site))
    assert told == f"the result is signed by the coordinator (key {key}…), site 1."
    assert f"site 1 (key {SITE.public.hex()[:16]}…)" in summarize(seen_signatures(run))


def test_signers_at_the_same_time_lose_no_signature(run: Path) -> None:
    keys = [SigningKey.generate(Randomness.insecure_from_seed(10 + site)) for site in range(8)]
    start = threading.Barrier(len(keys))

    def sign(site: int) -> None:
        start.wait()
        sign_result(run, keys[site], site=site, releases=releases(run))

    with ThreadPoolExecutor(len(keys)) as signers:
        list(signers.map(sign, range(len(keys))))
    seen = seen_signatures(run, KeyDirectory(tuple(key.public for key in keys)))
    assert [each.made.site for each in seen] == [*range(len(keys))]
    assert all(each.is_valid and each.is_vouched for each in seen)


@pytest.mark.parametrize(
    "change",
    [
        {"role": "coordinator"},
        {"site": 0},
        {"releases": 4},
        {"session": "00" * 16},
        {"study": "00" * 32},
        {"study": ""},
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
    sign_result(run, SITE, site=1, releases=releases(run))
    (made,) = json.loads((run / SIGNATURES).read_text())
    (run / SIGNATURES).write_text(json.dumps([made | change]))
    (seen,) = seen_signatures(run, DIRECTORY)
    assert not seen.is_valid
    assert "NOT VALID" in str(seen)
    assert "NOT validly signed" in summarize((seen,))


@pytest.mark.parametrize("field", ["signature", "key", "session", "result_sha256"])
def test_digits_with_an_end_of_line_are_no_signature(run: Path, field: str) -> None:
    sign_result(run, SITE, site=1, releases=releases(run))
    (made,) = json.loads((run / SIGNATURES).read_text())
    (run / SIGNATURES).write_text(json.dumps([made | {field: made[field] + "\n"}]))
    with pytest.raises(RecordError, match="is damaged: it holds no signatures"):
        seen_signatures(run, DIRECTORY)


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
    sign_result(run, OTHER, site=1, releases=releases(run))
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
        sign_result(run, SITE, site=0, releases=releases(run), directory=DIRECTORY)
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


def site_with_trail(
    folder: Path, run: Path, rounds: tuple[int, ...], accepted: tuple[str, ...] = ()
) -> Path:
    """The site file of a site whose trail has releases of a run, in rounds by attempt."""
    SITE.create(folder / "identity.pem")
    DIRECTORY.write(folder / "directory.txt")
    file = {
        "site": {
            "id": 1, "dataset_id": "chest", "signing_key": "identity.pem",
            "key_directory": "directory.txt",
        },
        "dataset": {"name": "npz", "path": "data.npz"},
        "policy": {"epsilon": 1.0, "delta": 1e-5, "unit": "site", "against": "everyone"},
    }  # fmt: skip
    (folder / "site.toml").write_text(tomli_w.dumps(file))
    session = releases(run).session
    trail = AuditTrail(folder / "audit.jsonl", 1, SITE)
    trail.accepted(bytes(16), "00" * 32, "train", "00" * 32)
    trail.answered(Request(bytes(16), 0, 0, 0, None, b""), b"?", has_release=True)
    for digest in accepted or (tables(run),):
        trail.accepted(session, STUDY, "train", digest)
    for attempt, number in enumerate(rounds):
        trail.answered(Request(session, number, attempt, 0, None, b""), b"?", has_release=True)
    trail.close()
    return folder / "site.toml"


def test_site_countersigns_the_run_of_its_trail(run: Path, tmp_path: Path) -> None:
    # One release in the only round, and one in an attempt that came to nothing.
    file = site_with_trail(tmp_path, run, (0, 1))
    session = releases(run).session.hex()
    arguments = ("sign", str(run), "--site", str(file))
    status, out, _ = cohortium(*arguments, "--key-directory", str(tmp_path / "directory.txt"))
    assert status == 0
    assert f"as in the directory, 2 releases in run {session[:8]}" in out
    (made,) = json.loads((run / SIGNATURES).read_text())
    assert (made["session"], made["study"], made["releases"]) == (session, STUDY, 2)
    assert cohortium(*arguments, "--session", session[:6].upper())[0] == 0
    with pytest.raises(RequestError, match=f"is of the run {session[:8]}, not '00000000'"):
        cohortium(*arguments, "--session", "00000000")
    with pytest.raises(RequestError, match="give --site, too"):
        cohortium("sign", str(run), "--session", session)


def test_site_refuses_the_result_of_another_run(run: Path, tmp_path: Path) -> None:
    """The same study, run again without this site; a folder renamed does not help."""
    again = tmp_path / "again"
    tiny_federation(rounds=1, sites=2, seed=2).run(again)
    assert releases(again).session != releases(run).session
    file = site_with_trail(tmp_path, run, (0,))
    with pytest.raises(RequestError, match="the trail has no release in the run"):
        cohortium("sign", str(again), "--site", str(file))
    with pytest.raises(RequestError, match="and the site's releases are of the run"):
        sign_result(again, SITE, site=1, releases=releases(run))
    assert not (again / SIGNATURES).exists()


def test_hospitals_countersign_their_own_runs(tmp_path: Path) -> None:
    """Two runs of one study at servers with trails of their own, and its evaluations."""
    study = tiny_federation(
        rounds=2, sites=2, threads=1, holdout_fraction=0.4,
        evaluation=EvaluationPlan(parts=("accuracy",)),
    )  # fmt: skip
    rehearsal.write_rehearsal(study.prepare(), tmp_path / "all", engine="inline")
    for run in ("one", "two"):
        with serving(tmp_path / "all") as corridor:
            Federation.read(tmp_path / "all" / "study.toml").run(tmp_path / run, engine=corridor)
    for folder, number in (("one", 2), ("one/evaluation", 1), ("two", 2)):
        for site in range(2):
            file = str(tmp_path / "all" / f"site-{site}" / "site.toml")
            status, out, _ = cohortium("sign", str(tmp_path / folder), "--site", file)
            assert status == 0
            assert f"{number:,} releases in run" in out
        seen = seen_signatures(tmp_path / folder)
        assert [(each.who, each.is_valid) for each in seen] == [("site 0", True), ("site 1", True)]
        session = json.loads((tmp_path / folder / RESULT).read_text())["session"]
        assert {each.made.session for each in seen} == {session}
        assert all(len(each.made.study) == 64 for each in seen)
    shutil.copy(tmp_path / "one" / SIGNATURES, tmp_path / "two" / SIGNATURES)
    assert [each.is_valid for each in seen_signatures(tmp_path / "two")] == [False, False]


@pytest.mark.parametrize(
    ("rounds", "fault"),
    [((1,), "it has attempt 0 in another round"), ((1, 0), "it has attempt 0 in another round")],
)
def test_site_refuses_a_result_against_its_trail(
    run: Path, tmp_path: Path, rounds: tuple[int, ...], fault: str
) -> None:
    file = site_with_trail(tmp_path, run, rounds)
    with pytest.raises(RequestError, match=f"contradicts the site's trail: {fault}"):
        cohortium("sign", str(run), "--site", str(file))
    assert not (run / SIGNATURES).exists()


def test_site_refuses_the_result_of_another_study(run: Path, tmp_path: Path) -> None:
    """The session and the rounds are those of the trail, and the study has another rate."""
    file = site_with_trail(tmp_path, run, (0,))
    study = (run / "study.toml").read_text()
    (run / "study.toml").write_text(study.replace("seed = 1", "seed = 7", 1))
    with pytest.raises(RequestError, match="is not the study that the site accepted for the run"):
        cohortium("sign", str(run), "--site", str(file))
    for damaged in ("", "[federation]\n", "[federation", study + "[federation]\n"):
        (run / "study.toml").write_text(damaged)
        with pytest.raises(RecordError, match="is no study of a run here"):
            cohortium("sign", str(run), "--site", str(file))
    assert not (run / SIGNATURES).exists()
    # Another order of tables and keys, and an observer more, are the same to every site.
    whole = tomllib.loads(study)
    (run / "study.toml").write_text(tomli_w.dumps(dict(reversed(whole.items()))))
    assert cohortium("sign", str(run), "--site", str(file))[0] == 0


@pytest.mark.parametrize("name", ["study.toml", "dataset.json"])
def test_endless_file_is_refused(run: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of others may hold a link to anything."""
    sign_result(run, LEAD)
    monkeypatch.setattr("cohortium.runs.stated_result._MAX_RESULT_BYTES", 1 << 16)
    (run / name).unlink()
    (run / name).symlink_to("/dev/zero")
    with pytest.raises(RecordError, match="is larger than"):
        seen_signatures(run)


def test_site_refuses_a_session_of_two_studies(run: Path, tmp_path: Path) -> None:
    file = site_with_trail(tmp_path, run, (0,), (tables(run), "00" * 32, tables(run)))
    with pytest.raises(RequestError, match="the trail has several studies of the run"):
        cohortium("sign", str(run), "--site", str(file))


def test_site_refuses_a_trail_without_tables(run: Path, tmp_path: Path) -> None:
    file = site_with_trail(tmp_path, run, (0,), ("",))
    with pytest.raises(RequestError, match="as an older version wrote it"):
        cohortium("sign", str(run), "--site", str(file))


def test_site_refuses_a_result_without_its_releases(run: Path) -> None:
    with pytest.raises(RequestError, match="no completed round has one of its releases"):
        sign_result(run, SITE, site=1, releases=releases(run, (0, 5)))
    with pytest.raises(RequestError, match="the coordinator has none"):
        sign_result(run, LEAD, releases=releases(run))
    with pytest.raises(RequestError, match="a site signs for its releases"):
        sign_result(run, SITE, site=1)


def test_signature_for_another_run_is_not_valid(run: Path) -> None:
    """A key's own signature of these very bytes, which names the run that the trail had."""
    forged(run)
    assert [seen.is_valid for seen in seen_signatures(run, DIRECTORY)] == [True]
    for other in ("", "00" * 16):
        forged(run, session=other)
        (seen,) = seen_signatures(run, DIRECTORY)
        assert seen.made.is_valid
        assert not seen.is_valid
        assert summarize((seen,)) == "the result is NOT validly signed by site 1."


def test_result_without_a_session_is_its_coordinators_to_sign(run: Path) -> None:
    without_session(run)
    forged(run, session="07" * 16)
    assert [seen.is_valid for seen in seen_signatures(run, DIRECTORY)] == [False]
    with pytest.raises(RequestError, match="does not name its run, as an older version wrote it"):
        sign_result(
            run,
            SITE,
            site=1,
            releases=SiteReleases(session=bytes(16), study="", tables="", attempts=((0, 0),)),
        )
    sign_result(run, LEAD)
    assert [each.is_valid for each in seen_signatures(run)] == [True, False]


def test_text_of_a_signature_is_frozen() -> None:
    """Known bytes: all fields but the signature, in their order."""
    made = Signature(
        role="site", site=1, session="07" * 16, study="dd" * 32, releases=3,
        result_sha256="aa" * 32, weights_sha256="bb" * 32, study_sha256="ee" * 32,
        dataset_sha256="ff" * 32, key="cc" * 32,
    )  # fmt: skip
    text = (
        '{"role":"site","site":1,"session":"' + "07" * 16 + '","study":"' + "dd" * 32
        + '","releases":3,"result_sha256":"' + "aa" * 32 + '","weights_sha256":"' + "bb" * 32
        + '","study_sha256":"' + "ee" * 32 + '","dataset_sha256":"' + "ff" * 32
        + '","key":"' + "cc" * 32 + '"}'
    )  # fmt: skip
    assert made.signed_text == b"cohortium result 2\x1f" + text.encode()


@pytest.mark.parametrize(
    "change", [{"session": "07"}, {"session": 7}, {"history": [{}]}, {"history": None}]
)
def test_damaged_result_is_not_signed(run: Path, change: dict[str, object]) -> None:
    result = json.loads((run / RESULT).read_text())
    (run / RESULT).write_text(json.dumps(result | change))
    with pytest.raises(RecordError, match="is damaged; copy it anew"):
        sign_result(run, LEAD)


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
    with pytest.raises(StoppedError, match=r"`cohortium resume \S+/run --sign-with KEY`"):
        study.run(folder, stop=stop_before(1), signing_key=LEAD)
    for key in (None, OTHER):
        with pytest.raises(RequestError, match=f"begins with '{LEAD.public.hex()[:16]}"):
            study.resume(folder, signing_key=key)
    study.resume(folder, signing_key=LEAD)
    (seen,) = seen_signatures(folder)
    assert (seen.who, seen.is_valid, seen.made.key) == ("the coordinator", True, LEAD.public.hex())


def test_key_may_be_given_for_the_first_time_to_a_resumption(tmp_path: Path) -> None:
    study, folder = tiny_federation(rounds=2, sites=2), tmp_path / "run"
    with pytest.raises(StoppedError, match=r"`cohortium resume \S+/run`\."):
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


def test_evaluate_command_signs_its_result(tmp_path: Path) -> None:
    file, run, key = tmp_path / "study.toml", tmp_path / "run", tmp_path / "lead.pem"
    others = {
        "federation": {"sites": 2, "rounds": 1, "holdout_fraction": 0.4},
        "privatizer": {"name": "none"}, "aggregator": {"name": "plain"},
    }  # fmt: skip
    file.write_text(PARTS + tomli_w.dumps(others))
    assert cohortium("run", str(file), "--out", str(run), "--quiet")[0] == 0
    arguments = ("evaluate", str(run), "--part", "accuracy", "--sign-with", str(key))
    with pytest.raises(IdentityError, match="cannot read the key"):
        cohortium(*arguments)
    assert not (run / "evaluation").exists()
    LEAD.create(key)
    status, out, _ = cohortium(*arguments)
    assert status == 0
    assert f"signed  with the coordinator's key {LEAD.public.hex()[:16]}…" in out
    (seen,) = seen_signatures(run / "evaluation")
    assert (seen.is_valid, seen.made.key) == (True, LEAD.public.hex())
    assert seen_signatures(run) == ()


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
