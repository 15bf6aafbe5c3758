"""A site's server: what it takes part in, what it refuses, and what it never says."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import tomli_w
from attrs import define, evolve
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cohortium import Federation
from cohortium.catalog.discovery import CatalogEntry, discover
from cohortium.data.location import DATA_FOLDER
from cohortium.deployment import rehearsal
from cohortium.deployment.active_runs import IDLE_TIMEOUT, MAX_ACTIVE_RUNS
from cohortium.deployment.admission import MAX_THREADS, NoEngine, invited_study
from cohortium.deployment.log_throttle import MAX_SENTENCES
from cohortium.deployment.site_config import SiteConfig
from cohortium.deployment.site_policy import SitePolicy
from cohortium.errors import RefusalError, StudyError
from cohortium.messages.codec import Message, decode, decode_either, encode
from cohortium.messages.deployment import Acceptance, IdentifyReply, IdentifyRequest, Invitation
from cohortium.messages.run import Refusal, Reply, Request
from cohortium.roles.protocols import Dataset
from cohortium.rounds.coordinator import Coordinator
from cohortium.runs.invite import build_invitation, collect_versions, invite_sites, invite_to_all
from cohortium.study import study_file, toml
from cohortium_descriptor import Descriptor
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from cohortium_medmnist import MedMNIST
from cohortium_npz import Npz
from tests.support.federations import QuadrantImages, tiny_federation
from tests.support.rehearsed_site import RehearsedSite, changed, copy_site, edit
from tests.support.study_files import PATHS

TOO_MANY = max(MAX_THREADS, os.cpu_count() or 0) + 1


def simulation(**changes: Any) -> Federation:
    parts: dict[str, Any] = {
        "privatizer": Gaussian(epsilon=6.0, delta=1e-3),
        "trainer": FedSGD(sampling_rate=1.0),
        "sites": 3,
        "rounds": 2,
    }
    return tiny_federation(**(parts | changes))


@pytest.fixture(scope="module")
def dealt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dealt") / "reh"
    rehearsal.write_rehearsal(simulation().prepare(), folder, engine="inline")
    return folder


@pytest.fixture
def place(dealt: Path, tmp_path: Path) -> Path:
    """A copy of hospital 1 that a test may spoil."""
    return copy_site(dealt, tmp_path / "site-1")


@pytest.fixture
def site(place: Path) -> Iterator[RehearsedSite]:
    made = RehearsedSite(place)
    yield made
    made.stop()


def policy(folder: Path, **floors: Any) -> None:
    """Change the policy of a hospital."""
    edit(folder, policy=floors)


@pytest.fixture(scope="module")
def invitation(dealt: Path) -> Invitation:
    return build_invitation(Federation.read(dealt / "study.toml").prepare())


# --- Taking part ---------------------------------------------------------------------------------


def test_site_identifies_itself_with_signature(site: RehearsedSite, dealt: Path) -> None:
    from cohortium.crypto.signing import KeyDirectory

    challenge = os.urandom(32)
    present = site.send(IdentifyRequest(challenge))
    assert present.site == 1
    directory = KeyDirectory.read(dealt / "directory.txt")
    text = IdentifyReply.statement(challenge, 1)
    assert directory.verify(1, present.signature, text)
    assert not directory.verify(1, present.signature, IdentifyReply.statement(os.urandom(32), 1))
    assert not directory.verify(2, present.signature, IdentifyReply.statement(challenge, 2))


def test_site_accepts_invitation(site: RehearsedSite, invitation: Invitation) -> None:
    accepted = site.send(invitation)
    assert accepted == Acceptance(invitation.session, 1, 0, {})
    assert site.send(invitation) == accepted


@pytest.mark.slow
@pytest.mark.parametrize(
    "dataset", [QuadrantImages(), Npz(path="grey.npz")], ids=["squares", "npz"]
)
def test_deployment_in_process_matches_simulation(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Grey images as MedMNIST lays them, large enough for torch to have several ways to convolve.
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 200), ("test", 50)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 28, 28), np.uint8)
        arrays[f"{split}_labels"] = rng.integers(0, 2, (count, 1), np.uint8)
    np.savez(tmp_path / "grey.npz", **arrays)
    monkeypatch.setenv(DATA_FOLDER, str(tmp_path))
    simulated = simulation(
        dataset=dataset, insecure_seeded_secrets=True, threads=1, aggregator="secagg", sites=5
    )
    rehearsal.write_rehearsal(simulated.prepare(), tmp_path / "reh")
    sites = {n: RehearsedSite(tmp_path / "reh" / f"site-{n}") for n in range(5)}

    class Corridor:
        def connect(self, sites: object) -> Any:
            assert sites is None
            return self

        def exchange(self, broadcast: bytes, per_site: Any, timeout: object = None) -> Any:
            for number, own in per_site.items():
                yield number, sites[number].server.answer(broadcast, own)

        def close(self) -> None:
            for site in sites.values():
                site.stop()

    deployed = Federation.read(tmp_path / "reh" / "study.toml")
    result = deployed.run(engine=Corridor())
    assert result.weights_sha256 == simulated.run().weights_sha256
    assert result.accuracy is not None
    assert Federation.read(tmp_path / "reh" / "study.toml") == deployed


def with_features(place: Path, **keys: Any) -> RehearsedSite:
    edit(place, site=keys)
    return RehearsedSite(place)


def features_of(invitation: Invitation) -> Invitation:
    """An invitation with a model of features."""
    shared = toml.loads(changed(invitation).study, where="test")
    text = tomli_w.dumps(
        {**shared, "model": {"name": "scatternet", "scales": 1, "angles": 2, "groups": 3}}
    )
    return evolved(changed(invitation), text)


def test_site_keeps_features_in_its_own_folder(place: Path, invitation: Invitation) -> None:
    invited = features_of(invitation)
    site = with_features(place, features="features", max_features_gib=1)
    try:
        assert isinstance(site.send(invited), Acceptance)
        (file,) = (place / "features").iterdir()
        first = file.stat().st_ino
        site.restart()
        assert isinstance(site.send(features_of(invitation)), Acceptance)
        assert (place / "features" / file.name).stat().st_ino == first
    finally:
        site.stop()


def test_unusable_feature_folder_is_explained_in_log_only(
    place: Path, invitation: Invitation, caplog: pytest.LogCaptureFixture
) -> None:
    (place / "features").write_text("a file")
    site = with_features(place, features="features")
    try:
        found = sentence(site, features_of(invitation))
    finally:
        site.stop()
    assert found == ("site-error", "the site's own files do not serve; its log says why.")
    assert "the folder of features" in caplog.text


# --- What is refused -----------------------------------------------------------------------------


def sentence(site: RehearsedSite, message: Message) -> tuple[str, str]:
    refusal = site.send(message)
    assert isinstance(refusal, Refusal), refusal
    assert len(refusal.reason) <= 1000
    return refusal.code, refusal.reason


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"dataset": {"name": "npz", "path": "/etc/shadow"}}, "tables", "table [dataset]"),
        ({"engine": {"name": "inline"}}, "tables", "table [engine]"),
        ({"partitioner": {"name": "iid"}}, "tables", "table [partitioner]"),
        ({"federation": {"key_directory": "/etc/shadow"}}, "tables", "term key_directory"),
        ({"federation": {"observers": ["events"]}}, "tables", "term observers"),
        ({"model": None}, "tables", "no table [model]"),
        ({"data": None}, "tables", "no table [data]"),
        (
            {"model": {"name": "module", "module": "os:system", "width": None}},
            "policy.allowed_local_values",
            "module = 'os:system', which names code",
        ),
        ({"model": {"name": "npz", "path": "/etc/passwd"}}, "plugins", "the model 'npz'"),
        (
            {"model": {"name": "descriptor", "center_on": {"name": "npz", "path": "/etc/passwd"}}},
            "policy.allowed_local_values",
            "the dataset 'npz' path = '/etc/passwd'",
        ),
        (
            {
                "model": {
                    "name": "descriptor",
                    "components": 8,
                    "center_on": {"name": "phantom"},
                    "extra_features": {
                        "name": "pretrained",
                        "images": "phantom",
                        "weights": "../keys",
                    },
                }
            },
            "policy.allowed_local_values",
            "the model 'pretrained' weights = '../keys'",
        ),
        (
            {"model": {"name": "descriptor", "center_on": {"name": "medmnist"}}},
            "policy.allowed_downloads",
            "write download = false in the study",
        ),
        (
            {"model": {"name": "descriptor", "center_on": {"name": "medmnist", "download": True}}},
            "policy.allowed_downloads",
            "the dataset 'medmnist' of the study may fetch its files",
        ),
        ({"model": {"name": "no-such"}}, "plugins", "the model 'no-such'"),
        ({"model": {"name": ["cnn"]}}, "plugins", "the model"),
        ({"model": {"width": "wide"}}, "study", "width: expected int"),
        ({"model": {"widht": 3}}, "study", "no such parameter"),
        ({"federation": {"device": "meta"}}, "device", "device 'meta'"),
        ({"federation": {"threads": 4096}}, "threads", "threads"),
        ({"federation": {"threads": TOO_MANY}}, "threads", f"asks for {TOO_MANY} threads"),
        ({"federation": {"sites": 1}}, "site-error", "no site 1"),
        ({"data": {"size": [9, 8]}}, "data", "another type, shape"),
        (
            {"data": {"task": {"name": "multiclass", "names": list("abce")}}},
            "data",
            "task or classes",
        ),
        ({"data": {"patients": 3}}, "data", "patients"),
        ({"privatizer": {"epsilon": 60.0}}, "policy.epsilon", "this site allows"),
        (
            {"federation": {"retries": 3}, "privatizer": {"epsilon": 9.0}},
            "policy.epsilon",
            "allows",
        ),
        ({"federation": {"insecure_seeded_secrets": True}}, "policy.epsilon", "public seed"),
    ],
)
def test_unacceptable_invitation_is_refused_with_code(
    site: RehearsedSite,
    invitation: Invitation,
    changes: dict[str, Any],
    code: str,
    words: str,
) -> None:
    if changes.get("model", {}) and "name" in changes["model"]:
        bare = changed(invitation, model=None)
        shared = toml.loads(bare.study, where="test")
        model = {k: v for k, v in changes["model"].items() if v is not None}
        text = tomli_w.dumps({**shared, "model": model})
        message = evolved(bare, text)
    else:
        message = changed(invitation, **changes)
    found, reason = sentence(site, message)
    assert found == code
    assert words in reason
    assert not list((site.folder / "runs").glob("*"))


def evolved(invitation: Invitation, text: str) -> Invitation:
    shared = toml.loads(text, where="test")
    try:
        versions = collect_versions(shared)
    except RefusalError:
        versions = invitation.versions
    return Invitation(invitation.session, text, invitation.directory, versions)


def test_missing_class_is_explained_in_log_only(
    place: Path, invitation: Invitation, caplog: pytest.LogCaptureFixture
) -> None:
    with np.load(place / "data.npz") as stored:
        held = {name: stored[name] for name in stored.files}
    held["classes"] = held["classes"][:-1]
    kept = held["train_labels"].ravel() < len(held["classes"])
    for name in ("train_images", "train_labels"):
        held[name] = held[name][kept]
    np.savez(place / "data.npz", **held)
    site = RehearsedSite(place)
    try:
        code, reason = sentence(site, invitation)
    finally:
        site.stop()
    assert (code, "another type, shape" in reason) == ("data", True)
    why, refused = caplog.messages
    assert refused == f"refused (data): {reason}"
    assert "3 classes (a, b, c) of the task Multiclass; its data set must name" in why
    assert "(a, b, c)" not in reason


@pytest.mark.parametrize("declared", [0, 10, 11])
def test_no_refusal_tells_how_many_examples_a_site_has(
    place: Path, invitation: Invitation, declared: int, caplog: pytest.LogCaptureFixture
) -> None:
    edit(place, site={"declared_examples": declared})
    site = RehearsedSite(place)
    try:
        answer = site.send(changed(invitation, data={"examples": 10}))
    finally:
        site.stop()
    told = "the study declares 10 examples over all sites together, and this site alone has more"
    assert any(told in message for message in caplog.messages)
    if declared > 10:
        assert isinstance(answer, Refusal)
        assert answer.code == "examples"
    else:
        assert isinstance(answer, Acceptance)


def test_no_image_is_read_for_a_study_that_the_policy_refuses(
    site: RehearsedSite, invitation: Invitation
) -> None:
    (site.folder / "data.npz").unlink()
    costly = changed(invitation, privatizer={"epsilon": 60.0})
    assert sentence(site, costly)[0] == "policy.epsilon"
    assert sentence(site, invitation)[0] == "site-error"


def test_a_study_without_privacy_is_refused(site: RehearsedSite, invitation: Invitation) -> None:
    bare = changed(invitation, privatizer=None)
    text = bare.study + '\n[privatizer]\nname = "none"\n'
    assert sentence(site, evolved(bare, text))[0] == "policy.epsilon"


def test_only_code_named_by_policy_is_used(place: Path, invitation: Invitation) -> None:
    policy(place, allowed_local_values=["tests.support.federations:SmallConvNet"])
    site = RehearsedSite(place)
    try:
        bare = changed(invitation, model=None)
        for module, accepted in (
            ("tests.support.federations:SmallConvNet", True),
            ("tests.support.federations:tiny_federation", False),
            ("subprocess:run", False),
        ):
            text = bare.study + f'\n[model]\nname = "module"\nmodule = "{module}"\n'
            answer = site.send(evolved(changed(bare), text))
            assert isinstance(answer, Acceptance) == accepted
    finally:
        site.stop()


BROKEN = """
from torch import nn
class Net(nn.Linear):
    def __init__(self, channels, classes):
        {}["width"]
"""


@pytest.mark.parametrize(
    ("code", "source", "words"),
    [
        ("no_such_file:Net", "", "there is no module 'no_such_file' among the installed packages"),
        (
            "tests.support.federations:SmallConvNat",
            "",
            "has no 'SmallConvNat'; did you mean SmallConvNet?",
        ),
        ("planted_net:Net", BROKEN, "cannot be made: KeyError: 'width' (planted_net.py, line 5)"),
        ("planted_net:Net", "1 / 0", "ZeroDivisionError: division by zero (planted_net.py, line"),
        ("planted_net:Net", "import not_there_at_all", "needs not_there_at_all"),
        ("planted_net:Net", "raise SystemExit", "cannot be imported: SystemExit"),
    ],
)
def test_unbuildable_network_is_explained_in_log_only(
    code: str,
    source: str,
    words: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog = request.getfixturevalue("caplog")
    place, tmp_path = request.getfixturevalue("place"), request.getfixturevalue("tmp_path")
    invitation = request.getfixturevalue("invitation")
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "planted_net.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path / "installed")
    monkeypatch.delitem(sys.modules, "planted_net", raising=False)
    policy(place, allowed_local_values=[code])
    site = RehearsedSite(place)
    try:
        bare = changed(invitation, model=None)
        text = bare.study + f'\n[model]\nname = "module"\nmodule = "{code}"\n'
        answer = sentence(site, evolved(bare, text))
        assert answer == (
            "network", "the site cannot make or train the network; its log says why.",
        )  # fmt: skip
        told, refused = caplog.messages
        assert refused.startswith("refused (network): ")
        assert words in told
        assert "\n" not in told
    finally:
        site.stop()


def test_study_module_folder_is_refused_by_site(
    place: Path, invitation: Invitation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sent_net.py").write_text("raise AssertionError('it was imported')")
    policy(place, allowed_local_values=["sent_net:Net"])
    site = RehearsedSite(place)
    try:
        bare = changed(invitation, model=None)
        table = {"name": "module", "module": "sent_net:Net", "folder": "."}
        text = bare.study + tomli_w.dumps({"model": table})
        assert sentence(site, evolved(bare, text))[0] == "policy.allowed_local_values"
    finally:
        site.stop()
    assert "sent_net" not in sys.modules


def test_invitation_omits_local_module_folder(dealt: Path, tmp_path: Path) -> None:
    (tmp_path / "lead_net.py").write_text("from tests.support.federations import SmallConvNet\n")
    text = (dealt / "study.toml").read_text()
    head, _, rest = text.partition("[model]")
    table = '[model]\nname = "module"\nmodule = "lead_net:SmallConvNet"\n'
    tail = rest[rest.index("\n[") :]
    (tmp_path / "study.toml").write_text(head + table + tail)
    for name in ("public.npz", "directory.txt"):
        if (dealt / name).exists():
            (tmp_path / name).write_bytes((dealt / name).read_bytes())
    ready = Federation.read(tmp_path / "study.toml").prepare()
    assert str(tmp_path) in ready.federation.as_toml()
    sent = build_invitation(ready).study
    assert "lead_net:SmallConvNet" in sent
    assert str(tmp_path) not in sent
    assert "folder" not in sent
    sys.modules.pop("lead_net", None)


def test_plugin_outside_policy_is_never_built(
    place: Path, invitation: Invitation, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cohortium_cnn

    policy(place, allowed_plugins=["fedsgd", "gaussian", "plain", "descriptor"])
    site = RehearsedSite(place)

    def made(self: object) -> None:
        raise AssertionError("made")

    monkeypatch.setattr(cohortium_cnn.CNN, "__attrs_post_init__", made, raising=False)
    monkeypatch.setattr(cohortium_cnn.CNN, "build", made)
    try:
        code, reason = sentence(site, invitation)
        assert code == "policy.allowed_plugins"
        assert "cnn" in reason
        assert "descriptor" not in reason
    finally:
        site.stop()


def test_task_of_another_distribution_needs_an_entry(
    invitation: Invitation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def foreign(entry: CatalogEntry) -> CatalogEntry:
        if entry.role != "task":
            return entry
        return evolve(entry, record=evolve(entry.record, distribution="acme"))

    found = discover()
    catalog = evolve(found, entries=tuple(map(foreign, found.entries)))
    monkeypatch.setattr("cohortium.deployment.admission.discover", lambda: catalog)
    demands: dict[str, Any] = {"epsilon": 6.0, "delta": 1e-3, "unit": "example"}
    demands |= {"against": "everyone"}
    with pytest.raises(RefusalError, match=r"the task 'multiclass' of multiclass \(acme"):
        invited_study(invitation, SitePolicy(**demands, allowed_plugins=("cohortium",)))
    invited_study(invitation, SitePolicy(**demands, allowed_plugins=("cohortium", "acme:*")))


def test_version_difference_is_refused_or_reported(
    site: RehearsedSite, invitation: Invitation
) -> None:
    for name in ("cohortium", "plugin fedsgd", "plugin multiclass"):
        other = Invitation(
            os.urandom(16), invitation.study, "", {**invitation.versions, name: "0.0.1"}
        )
        code, reason = sentence(site, other)
        assert code == "versions"
        assert f"the coordinator has {name} 0.0.1" in reason
    other = Invitation(os.urandom(16), invitation.study, "", {**invitation.versions, "torch": "1"})
    assert site.send(other).versions == {"torch": invitation.versions["torch"]}


def test_unpinned_key_directory_is_refused(place: Path, invitation: Invitation) -> None:
    from cohortium.crypto.signing import KeyDirectory, SigningKey
    from cohortium.plugin import Randomness

    theirs = KeyDirectory(tuple(SigningKey.generate(Randomness.system()).public for _ in range(3)))
    site = RehearsedSite(place)
    try:
        message = Invitation(os.urandom(16), invitation.study, str(theirs), invitation.versions)
        assert sentence(site, message)[0] == "policy.directory"
        garbage = Invitation(os.urandom(16), invitation.study, "hello", invitation.versions)
        code, reason = sentence(site, garbage)
        assert code == "malformed"
        assert "the invitation's directory: a directory begins with" in reason
    finally:
        site.stop()


def test_site_data_error_is_explained_in_log_only(
    place: Path, invitation: Invitation, caplog: pytest.LogCaptureFixture
) -> None:
    site = RehearsedSite(place)
    try:
        (place / "data.npz").write_bytes(b"garbage")
        assert sentence(site, invitation) == (
            "site-error",
            "the site's own files do not serve; its log says why.",
        )
        assert any("data.npz" in told for told in caplog.messages)
    finally:
        site.stop()


def test_missing_ledger_refuses_invitation(place: Path, invitation: Invitation) -> None:
    site = RehearsedSite(place)
    try:
        (place / "ledger.sqlite").unlink()
        assert sentence(site, invitation)[0] == "ledger"
        assert not (place / "ledger.sqlite").exists()
    finally:
        site.stop()


# --- Who else speaks -----------------------------------------------------------------------------


def test_second_study_for_session_is_refused(site: RehearsedSite, invitation: Invitation) -> None:
    assert isinstance(site.send(invitation), Acceptance)
    other = changed(invitation, federation={"rounds": 1})
    same = Invitation(invitation.session, other.study, "", invitation.versions)
    assert sentence(site, same)[0] == "session"
    site.restart()
    assert sentence(site, same)[0] == "session"
    assert isinstance(site.send(invitation), Acceptance)


def test_request_without_invitation_is_refused(site: RehearsedSite) -> None:
    code, reason = sentence(site, Request(os.urandom(16), 0, 0, 0, memoryview(b""), b""))
    assert (code, reason) == ("session", "this site has not been invited to the run.")


def test_active_run_limit_refuses_new_invitations(
    site: RehearsedSite, invitation: Invitation
) -> None:
    def fresh() -> Invitation:
        return Invitation(os.urandom(16), invitation.study, "", invitation.versions)

    runs = [fresh() for _ in range(MAX_ACTIVE_RUNS)]
    for run in runs:
        assert isinstance(site.send(run), Acceptance)
    assert sentence(site, fresh())[0] == "busy"
    assert isinstance(site.send(runs[0]), Acceptance)
    site.now += IDLE_TIMEOUT
    assert isinstance(site.send(fresh()), Acceptance)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200
)
@given(broadcast=st.binary(max_size=200), own=st.binary(max_size=50), cut=st.integers(0, 400))
def test_hostile_bytes_are_answered_with_a_refusal(
    site: RehearsedSite, invitation: Invitation, broadcast: bytes, own: bytes, cut: int
) -> None:
    whole = encode(invitation)
    assert isinstance(site.send(broadcast, own), Refusal)
    assert isinstance(site.send(whole[: cut % len(whole)] + broadcast, own), Refusal)


def test_refusal_flood_writes_bounded_log(
    site: RehearsedSite, caplog: pytest.LogCaptureFixture
) -> None:
    before = len(caplog.messages)
    for _ in range(10 * MAX_SENTENCES):
        assert isinstance(decode(site.server.answer(b"no", b""), Refusal), Refusal)
    site.server.close()
    told = caplog.messages[before:]
    assert len(told) == MAX_SENTENCES + 1
    assert told[-1] == f"{9 * MAX_SENTENCES} more refusals in the last minute."


FIRST = """
import sys
from pathlib import Path
from cohortium.deployment.site_config import SiteConfig
from cohortium.deployment.site_server import SiteServer
from cohortium.messages.codec import decode
from cohortium.messages.run import Refusal

site_config = SiteConfig.read(Path(sys.argv[1]))
reception = SiteServer(site_config, site_config.open_journal())
reception.self_check()
reception.warm_up()

def packages():
    return {name.partition(".")[0] for name in sys.modules}

before = packages()
refusal = decode(reception.answer(Path(sys.argv[2]).read_bytes(), b""), Refusal)
print(refusal.code, *sorted(packages() - before))
"""


@pytest.mark.slow
def test_warmed_site_answers_without_new_imports(
    place: Path, invitation: Invitation, tmp_path: Path
) -> None:
    hostile = changed(invitation, privatizer={"epsilon": 999_999.0})
    (tmp_path / "invitation").write_bytes(encode(hostile))
    done = subprocess.run(
        [sys.executable, "-c", FIRST, place / "site.toml", tmp_path / "invitation"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, PATHS))},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["policy.epsilon"]


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=100
)
@given(text=st.text(max_size=200))
@example(text="# none")
def test_hostile_studies_are_answered_with_a_refusal(
    site: RehearsedSite, invitation: Invitation, text: str
) -> None:
    own = toml.loads(invitation.study, where="test")
    for study_text in (text, invitation.study + text):
        message = Invitation(os.urandom(16), study_text, "", invitation.versions)
        answer = site.send(message)
        # A comment changes nothing.
        assert isinstance(answer, Refusal) or toml.loads(study_text, where="test") == own
        site.now += IDLE_TIMEOUT


# --- A restart -----------------------------------------------------------------------------------


def coordinator_of(invitation: Invitation) -> Coordinator:
    """The other side of a run."""
    shared = toml.loads(invitation.study, where="test")
    ready = study_file.build(shared, engine=NoEngine(), into=Federation).prepare()
    return Coordinator(evolve(ready.run_config, session=invitation.session))


def begun(site: RehearsedSite, invitation: Invitation) -> tuple[bytes, bytes]:
    """The first request of the run, and the hospital's answer."""
    coordinator = coordinator_of(invitation)
    coordinator.begin_attempt(0, 0, range(3))
    requests = coordinator.next_requests()
    assert isinstance(site.send(invitation), Acceptance)
    return requests.broadcast, site.server.answer(requests.broadcast, requests.per_site[1])


def test_restarted_site_repeats_same_bytes(
    site: RehearsedSite, invitation: Invitation, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cohortium")
    request, reply = begun(site, invitation)
    assert isinstance(decode_either(reply, Reply, Refusal), Reply)
    assert site.server.answer(request, b"") == reply
    site.restart()
    assert site.server.answer(request, b"") == reply
    assert any("takes part again" in told for told in caplog.messages)


def test_restarted_site_does_not_repeat_attempt(
    site: RehearsedSite, invitation: Invitation
) -> None:
    request, reply = begun(site, invitation)
    folder = site.folder / "runs" / invitation.session.hex()
    (folder / "reply").unlink()  # as if the machine had gone down before it was kept
    site.restart()
    refusal = decode_either(site.server.answer(request, b""), Reply, Refusal)
    assert isinstance(refusal, Refusal)
    assert refusal.code == "out-of-order"
    assert reply


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def filled(*_: object) -> NoReturn:
    """What a full disk answers to whoever writes."""
    raise FULL


@pytest.mark.parametrize("call", ["write", "posix_fallocate"])
def test_full_disk_refuses_without_charge(
    site: RehearsedSite, invitation: Invitation, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    coordinator = coordinator_of(invitation)
    assert isinstance(site.send(invitation), Acceptance)

    def charged() -> int:
        site_config = SiteConfig.read(site.folder / "site.toml")
        with site_config.account.ledger.read_transaction() as book:
            return sum(book.charge_counts(site_config.dataset_id).values())

    for attempt, is_full in enumerate([True, False]):
        coordinator.begin_attempt(attempt, attempt, range(3))
        broadcast = coordinator.next_requests().broadcast
        with monkeypatch.context() as patch:
            if is_full:
                patch.setattr(os, call, filled)
            answer = site.send(broadcast)
        assert isinstance(answer, Refusal) == is_full, answer
        assert not is_full or "cannot be" in answer.reason
        assert charged() == attempt


def test_unwritable_trainer_state_is_found_before_charge(
    site: RehearsedSite, invitation: Invitation, caplog: pytest.LogCaptureFixture
) -> None:
    shared = toml.loads(invitation.study, where="test") | {"trainer": {"name": "fedmic"}}
    keeping = evolved(invitation, tomli_w.dumps(shared))
    # The folder of states is a file; under the unit of docs/deploy it may be one to read only.
    (site.folder / "states").write_text("mine")
    code, _ = sentence(site, keeping)
    assert code == "site-error"
    assert "the folder of states does not take them: File exists" in caplog.messages[0]
    assert (site.folder / "states").read_text() == "mine"


def test_invitation_that_is_not_stored_binds_no_session(
    site: RehearsedSite, invitation: Invitation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("cohortium.deployment.participation.atomic_write", filled)
        assert sentence(site, invitation)[0] == "disk"
    other = toml.loads(changed(invitation, federation={"rounds": 1}).study, where="test")
    message = evolved(invitation, tomli_w.dumps(other))
    assert isinstance(site.send(message), Acceptance)
    assert sentence(site, invitation)[0] == "session"


def test_trainer_state_of_another_study_is_not_used(
    site: RehearsedSite, invitation: Invitation
) -> None:
    """A state that noise on updates protects would leave under noise on gradients alone."""
    shared = toml.loads(invitation.study, where="test") | {"trainer": {"name": "feddyn"}}
    weak = shared | {"privatizer": {**shared["privatizer"], "unit": "site", "epsilon": 0.5}}
    shared |= {"privatizer": {**shared["privatizer"], "epsilon": 3.0}}
    first = evolved(invitation, tomli_w.dumps(weak))
    request, _ = begun(site, first)
    assert (site.folder / "states" / f"{first.session.hex()}.safetensors").is_file()
    shutil.rmtree(site.folder / "runs" / first.session.hex())  # as later runs do
    site.restart()
    code, reason = sentence(site, evolved(first, tomli_w.dumps(shared)))
    assert (code, reason) == ("session", "this site took part in that run with another study.")
    assert isinstance(site.send(first), Acceptance)
    assert isinstance(decode(site.server.answer(request, b""), Refusal), Refusal)


# --- The coordinator's side ----------------------------------------------------------------------


@define
class Line:
    """An exchange with given answers."""

    answers: dict[int, bytes]

    def exchange(self, broadcast: bytes, per_site: Any, timeout: object = None) -> Iterator[Any]:
        yield from self.answers.items()

    def close(self) -> None: ...


def test_invite_error_lists_each_site_problem(dealt: Path) -> None:
    ready = Federation.read(dealt / "study.toml").prepare()
    session = ready.run_config.session
    answers = {
        0: encode(Acceptance(session, 0, 0, {})),
        1: encode(Refusal(0, 0, "data", "the site's have\x1b[31m another shape.")),
    }
    with pytest.raises(StudyError) as error:
        invite_sites(Line(answers), ready)
    assert str(error.value) == (
        "2 of 3 sites do not take part:\n"
        "  site 1: the site's have\\x1b[31m another shape.\n"
        "  site 2: no answer came."
    )
    lies = {
        0: encode(Acceptance(os.urandom(16), 0, 0, {})),
        1: encode(Acceptance(session, 2, 0, {})),
        2: b"garbage",
    }
    with pytest.raises(StudyError, match="3 of 3"):
        invite_sites(Line(lies), ready)


@define
class RepeatingLine:
    """An exchange that yields replies as they are listed."""

    replies: list[tuple[int, bytes]]

    def exchange(self, broadcast: bytes, per_site: Any, timeout: object = None) -> Iterator[Any]:
        yield from self.replies

    def close(self) -> None: ...


def test_second_reply_to_invitation_changes_nothing(dealt: Path) -> None:
    ready = Federation.read(dealt / "study.toml").prepare()
    session = ready.run_config.session
    replies = [(n, encode(Acceptance(session, n, 80, {}))) for n in range(3)]
    later = [*replies, (1, b"garbage"), (7, b"of no site")]
    assert invite_sites(RepeatingLine([*replies, *later]), ready) == ()


def test_all_runs_are_asked_for_before_a_refusal_is_told(dealt: Path) -> None:
    ready = Federation.read(dealt / "study.toml").prepare()
    refusals = {n: encode(Refusal(0, 0, "approval", f"site {n} waits.")) for n in range(3)}
    with pytest.raises(StudyError) as error:
        invite_to_all(Line(refusals), [ready, ready])
    assert str(error.value).count("3 of 3 sites do not take part") == 2


def test_invite_warns_of_size_and_version_differences(dealt: Path) -> None:
    ready = Federation.read(dealt / "study.toml").prepare()
    session = ready.run_config.session

    def answers(examples: int) -> Line:
        versions = {2: {"torch": "1\n2"}}
        return Line(
            {n: encode(Acceptance(session, n, examples, versions.get(n, {}))) for n in range(3)}
        )

    sizes, versions = invite_sites(answers(70), ready)
    assert sizes.startswith("the sites declare 210 examples together, and the study 240:")
    with pytest.raises(StudyError, match="declare 270 examples together, and the study 240: sums"):
        invite_sites(answers(90), ready)
    assert versions == "site 2 has torch 1\\n2: equal bits need equal versions."


def test_deployment_and_simulation_settings_are_exclusive() -> None:
    spec = QuadrantImages().load().spec
    for wrong, words in (
        ({"data": spec}, "has no partitioner"),
        ({"data": spec, "partitioner": None, "dataset": None, "key_directory": "x"}, None),
        ({"dataset": None}, "a simulation needs a dataset"),
        ({"key_directory": "x"}, "a simulation makes its own keys"),
    ):
        if words is None:
            with pytest.raises(StudyError, match="directory of the sites' keys if, and only if"):
                tiny_federation(**wrong).prepare()
        else:
            with pytest.raises(StudyError, match=words):
                tiny_federation(**wrong)
    with pytest.raises(StudyError, match="holdout_fraction is for simulated sites"):
        tiny_federation(data=spec, partitioner=None, dataset=None, holdout_fraction=0.2).prepare()
    ready = tiny_federation(data=spec, partitioner=None, dataset=None).prepare()
    assert ready.test is None
    with pytest.raises(StudyError, match="data lie in the hospitals"):
        _ = ready.splits
    with pytest.raises(StudyError, match="no hospitals to ask"):
        tiny_federation().check_sites()


def test_allowed_download_is_admitted(invitation: Invitation, place: Path) -> None:
    model: dict[str, Any] = {"name": "descriptor", "center_on": {"name": "medmnist"}}
    shared = toml.loads(changed(invitation, model=None).study, where="test")
    message = evolved(invitation, tomli_w.dumps({**shared, "model": model}))
    floors = SiteConfig.read(place / "site.toml").policy
    with pytest.raises(RefusalError, match="may fetch its files from the network"):
        invited_study(message, floors)
    allowing = evolve(floors, allowed_downloads=("medmnist",))
    assert invited_study(message, allowing).model == Descriptor(center_on=MedMNIST())
    model["center_on"] = {"name": "medmnist", "download": False}
    silent = evolved(invitation, tomli_w.dumps({**shared, "model": model}))
    assert invited_study(silent, floors).model == Descriptor(center_on=MedMNIST(download=False))
