"""A person's yes: what waits, what it covers, and what ends with it."""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from attrs import define

from cohortium import Federation, reporting
from cohortium.deployment.approvals import MAX_STORED, MAX_WAITING, WAITING_DAYS, ApprovalStore
from cohortium.deployment.audit_trail import AuditTrail
from cohortium.deployment.study_facts import StudyFacts
from cohortium.deployment.study_outlook import study_outlook
from cohortium.deployment.study_record import InvitedStudy, study_digest
from cohortium.errors import (
    RecordError,
    RefusalError,
    RefutedError,
    RequestError,
    RunError,
    StudyError,
)
from cohortium.messages.codec import decode
from cohortium.messages.deployment import Acceptance, Invitation
from cohortium.messages.run import Refusal, Reply, Request
from cohortium.reporting.study_page import render_study_page
from cohortium.reporting.terms import Terms
from cohortium.rounds.plan_with_prior import attack_bounds
from cohortium.rounds.site import Site
from cohortium.runs.invite import collect_versions
from cohortium.storage.hash_chain import links
from cohortium.study import toml
from cohortium.study.measurement import PriorRelease
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from tests.support.command_line import cohortium
from tests.support.federations import tiny_federation
from tests.support.rehearsed_site import (
    SITES,
    RehearsedSite,
    again,
    coordinator_of,
    copy_site,
    rehearse,
)

TODAY = dt.datetime.now(dt.UTC).date()
NOON = dt.datetime(2027, 3, 1, 12, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Invitation]:
    folder = tmp_path_factory.mktemp("rehearsed") / "all"
    return folder, rehearse(folder)


@pytest.fixture
def site(rehearsed: tuple[Path, Invitation], tmp_path: Path) -> Iterator[RehearsedSite]:
    found = RehearsedSite(copy_site(rehearsed[0], tmp_path / "site-1", approve=True))
    yield found
    found.stop()


@pytest.fixture
def invitation(rehearsed: tuple[Path, Invitation]) -> Invitation:
    return again(rehearsed[1])


@contextlib.contextmanager
def store_of(site: RehearsedSite) -> Iterator[ApprovalStore]:
    """The studies of a site, as a command opens them."""
    trail = site.config.open_trail()
    found = site.config.approvals(trail)
    assert found is not None
    try:
        yield found
    finally:
        trail.close()


def approve(site: RehearsedSite, runs: int = 1) -> str:
    """Approve the one study that waits, and return its digest."""
    with store_of(site) as store:
        (record,) = [each for each in store.studies() if each.status != "approved"]
        return store.approve(record.digest, by="A. Meyer", until=TODAY + DAY, runs=runs).digest


# --- At a site -----------------------------------------------------------------------------------


def test_study_waits_until_a_person_approves(site: RehearsedSite, invitation: Invitation) -> None:
    refusal = site.send(invitation)
    assert isinstance(refusal, Refusal)
    assert refusal.code == "approval"
    assert site.send(again(invitation)) == refusal
    with store_of(site) as store:
        (record,) = store.studies()
        assert (record.state, record.study) == ("waiting", invitation.study)
        assert refusal.reason.startswith(f"the study {record.digest[:16]} has no approval")
    assert not [*(site.folder / "runs").glob("*")]
    assert approve(site) == record.digest
    assert isinstance(site.send(invitation), Acceptance)
    assert site.charged() == 0
    assert site.events() == [
        "opened", "study-waits", "refused", "refused", "study-approved", "run-accepted",
    ]  # fmt: skip


def test_without_approve_no_study_waits(
    rehearsed: tuple[Path, Invitation], invitation: Invitation, tmp_path: Path
) -> None:
    site = RehearsedSite(copy_site(rehearsed[0], tmp_path / "site-1"))
    assert isinstance(site.send(invitation), Acceptance)
    assert not (site.folder / "approvals").exists()
    site.stop()


CHANGES: dict[str, Callable[[Invitation], dict[str, Any]]] = {
    "one more byte": lambda old: {"study": old.study + "\n"},
    "one byte less": lambda old: {"study": old.study.rstrip("\n")},
    "another seed": lambda old: {"study": old.study.replace("seed = 1", "seed = 2")},
}


def test_study_changed_by_one_byte_waits_anew(site: RehearsedSite, invitation: Invitation) -> None:
    site.send(invitation)
    approve(site, runs=3)
    for change in CHANGES.values():
        other = again(invitation, **change(invitation))
        assert other.study != invitation.study
        refusal = site.send(other)
        assert isinstance(refusal, Refusal)
        assert refusal.code == "approval"
    assert isinstance(site.send(again(invitation)), Acceptance)


def test_digest_covers_all_that_decides_what_leaves(invitation: Invitation) -> None:
    versions = collect_versions(toml.loads(invitation.study, where="test"))
    plugin = next(name for name in versions if name.startswith("plugin "))

    def digest(other: Invitation, **changes: str) -> str:
        return study_digest(other, {**versions, **changes})

    first = digest(invitation)
    assert digest(again(invitation)) == first
    assert digest(invitation, torch="9.9") == first
    others = {
        digest(again(invitation, study=invitation.study + " ")),
        digest(again(invitation, directory=invitation.directory + " ")),
        digest(again(invitation, study="", directory=invitation.study)),
        digest(invitation, cohortium="9.9"),
        digest(invitation, **{plugin: "9.9"}),
        first,
    }
    assert len(others) == 6


def test_policy_refuses_before_a_person_is_asked(
    site: RehearsedSite, invitation: Invitation
) -> None:
    text = invitation.study.replace("epsilon = 6.0", "epsilon = 60.0")
    refusal = site.send(again(invitation, study=text))
    assert isinstance(refusal, Refusal)
    assert refusal.code == "policy.epsilon"
    with store_of(site) as store:
        assert store.studies() == []


def test_approval_covers_so_many_runs(site: RehearsedSite, invitation: Invitation) -> None:
    site.send(invitation)
    approve(site)
    first, second = again(invitation), again(invitation)
    # An invitation alone is no run: the study lead may make a dry run first.
    for each in (first, second):
        assert isinstance(site.send(each), Acceptance)
    begin(site, first)
    refusal = site.send(second)
    assert isinstance(refusal, Refusal)
    assert refusal.code == "approval"
    site.restart()
    assert isinstance(site.send(first), Acceptance)
    assert isinstance(site.send(again(invitation)), Refusal)
    with store_of(site) as store:
        (record,) = store.studies()
        assert record.status == "approved, all runs begun"


def begin(site: RehearsedSite, invitation: Invitation, attempt: int = 0) -> Any:
    """The answer to the first request of an attempt."""
    coordinator = coordinator_of(invitation)
    coordinator.begin_attempt(attempt, attempt, range(SITES))
    return site.send(coordinator.next_requests().broadcast)


def test_revoked_run_ends_before_its_next_release(
    site: RehearsedSite, invitation: Invitation
) -> None:
    site.send(invitation)
    digest = approve(site)
    assert isinstance(site.send(invitation), Acceptance)
    assert isinstance(begin(site, invitation), Reply)
    assert site.charged() == 1
    with store_of(site) as store:
        store.revoke(digest[:8], by="B. Weber")
    for attempt in (0, 1):
        refusal = begin(site, invitation, attempt)
        assert isinstance(refusal, Refusal)
        assert refusal.code == "approval"
    assert isinstance(site.send(invitation), Refusal)
    site.restart()
    assert isinstance(begin(site, invitation, 1), Refusal)
    assert site.charged() == 1


def test_lead_sees_why_a_revoked_run_ends(site: RehearsedSite, invitation: Invitation) -> None:
    site.send(invitation)
    digest = approve(site)
    assert isinstance(site.send(invitation), Acceptance)
    assert isinstance(begin(site, invitation), Reply)
    with store_of(site) as store:
        store.revoke(digest[:8], by="B. Weber")
    coordinator = coordinator_of(invitation)
    coordinator.begin_attempt(1, 1, range(SITES))
    broadcast = coordinator.next_requests().broadcast
    assert not coordinator.receive(1, site.server.answer(broadcast, b""))
    (failure,) = coordinator.failures
    assert (failure.site, failure.code) == (1, "approval")
    assert failure.reason.startswith(f"the study {digest[:16]} has no approval")
    later = msgspec.structs.replace(decode(broadcast, Request), attempt=5, stage=3)
    refusal = site.send(later)
    assert (refusal.attempt, refusal.stage, refusal.code) == (5, 3, "approval")


def test_release_computed_during_revocation_does_not_leave(
    site: RehearsedSite, invitation: Invitation, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.send(invitation)
    digest = approve(site)
    assert isinstance(site.send(invitation), Acceptance)
    answer = Site.answer

    def revoked_meanwhile(self: Site, broadcast: bytes, own: bytes) -> bytes:
        reply = answer(self, broadcast, own)
        with store_of(site) as store:
            store.revoke(digest, by="B. Weber")
        return reply

    begun = coordinator_of(invitation)
    begun.begin_attempt(0, 0, range(SITES))
    monkeypatch.setattr(Site, "answer", revoked_meanwhile)
    refusal = site.send(begun.next_requests().broadcast)
    assert isinstance(refusal, Refusal)
    assert refusal.code == "approval"
    assert site.charged() == 1
    assert not (site.folder / "runs" / invitation.session.hex() / "reply").exists()
    assert "answered" not in site.events()


def test_damaged_file_approves_nothing(
    site: RehearsedSite, invitation: Invitation, caplog: pytest.LogCaptureFixture
) -> None:
    site.send(invitation)
    path = site.folder / "approvals" / approve(site)
    path.write_bytes(path.read_bytes()[:-1])
    refusal = site.send(invitation)
    assert isinstance(refusal, Refusal)
    assert (refusal.code, refusal.reason) == (
        "disk", "the site's folder of approvals cannot be used.",
    )  # fmt: skip
    assert "is damaged, so the study is not approved" in caplog.text


def test_commands_show_and_decide(
    site: RehearsedSite, rehearsed: tuple[Path, Invitation], invitation: Invitation
) -> None:
    file = str(site.folder / "site.toml")
    assert cohortium("studies", file)[1] == "no study was asked for\n"
    site.send(invitation)
    (listed,) = json.loads(cohortium("studies", file, "--json")[1])
    assert (listed["state"], listed["approval"]) == ("waiting", None)
    page = site.folder / "page.html"
    _, out, _ = cohortium("studies", file, listed["digest"][:12], "--page", str(page))
    assert str(page) in out
    assert listed["digest"] in page.read_text()
    assert "after a run  ε = " in out
    by = ("--by", "A. Meyer")
    last = ("--until", str(TODAY + 7 * DAY))
    _, out, _ = cohortium("approve", file, listed["digest"], *last, *by, "--runs", "2")
    assert f"is approved for 2 runs until {TODAY + 7 * DAY}" in out
    (listed,) = json.loads(cohortium("studies", file, "--json")[1])
    assert (listed["approval"]["by"], listed["approval"]["runs"]) == ("A. Meyer", 2)
    cohortium("revoke", file, listed["digest"][:8], *by)
    assert "revoked" in cohortium("studies", file)[1]
    assert site.events()[-2:] == ["study-approved", "study-revoked"]
    with pytest.raises(RequestError, match="set approve = true"):
        cohortium("studies", str(rehearsed[0] / "site-0" / "site.toml"))


def test_approval_without_its_line_is_found(site: RehearsedSite, invitation: Invitation) -> None:
    site.send(invitation)
    path = site.folder / "audit.jsonl"
    with store_of(site) as store:
        (record,) = store.studies()
        before = path.read_bytes()
        store.now = lambda: dt.datetime.now(dt.UTC) + dt.timedelta(minutes=1)
        store.approve(record.digest, by="A. Meyer", until=TODAY + 2 * DAY)
    assert cohortium("trail", str(site.folder / "site.toml"), "--check")[0] == 0
    path.write_bytes(before)
    with pytest.raises(RecordError, match=r"the approval of study .* has no line"):
        cohortium("trail", str(site.folder / "site.toml"), "--check")


def test_older_approval_is_found(site: RehearsedSite, invitation: Invitation) -> None:
    """A copy from before the revocation would let the study run again."""
    site.send(invitation)
    with store_of(site) as store:
        (record,) = store.studies()
        store.now = lambda: dt.datetime.now(dt.UTC) + dt.timedelta(minutes=1)
        store.approve(record.digest, by="A. Meyer", until=TODAY + 2 * DAY)
        path = store.folder / record.digest
        older = path.read_bytes()
        store.revoke(record.digest, by="A. Meyer")
    own = str(site.folder / "site.toml")
    assert cohortium("trail", own, "--check")[0] == 0
    path.write_bytes(older)
    with pytest.raises(RefutedError, match="the folder of approvals is an older copy") as caught:
        cohortium("trail", own, "--check")
    assert caught.value.exit_code == 1
    with pytest.raises(RunError, match="in use already; stop the process that uses it"):
        cohortium("site", own, "--check")
    site.stop()
    with pytest.raises(RefutedError, match="its trail and its other files contradict each other"):
        cohortium("site", own, "--check")


@define
class Hall:
    """An engine with one server for each site."""

    sites: list[RehearsedSite]

    def connect(self, sites: object) -> Hall:
        assert sites is None
        return self

    def exchange(self, broadcast: bytes, per_site: Any, timeout: object = None) -> Iterator[Any]:
        for number, own in per_site.items():
            yield number, self.sites[number].server.answer(broadcast, own)

    def close(self) -> None: ...


def test_lead_waits_before_the_first_round(
    rehearsed: tuple[Path, Invitation], tmp_path: Path
) -> None:
    sites = []
    for number in range(SITES):
        folder = tmp_path / f"site-{number}"
        folder.mkdir()
        for path in (rehearsed[0] / f"site-{number}").iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
            (folder / path.name).chmod(0o600)
        text = (folder / "site.toml").read_text().replace("[policy]", "[policy]\napprove = true")
        (folder / "site.toml").write_text(text)
        sites.append(RehearsedSite(folder))
    deployed = Federation.read(rehearsed[0] / "study.toml")
    with pytest.raises(StudyError, match="2 of 2 sites do not take part") as waits:
        deployed.run(engine=Hall(sites))
    digests = {approve(site) for site in sites}
    assert len(digests) == 1, "hospitals can compare the digest"
    assert f"the study {digests.pop()[:16]} has no approval" in str(waits.value)
    result = deployed.run(tmp_path / "run", engine=Hall(sites))
    assert result.rounds == 2
    before, after = promise_before(sites[0]), promise_after(tmp_path / "run")
    assert before == after
    assert "wrong about 1 in 1,000 that did not" in before
    with store_of(sites[0]) as store:
        (record,) = store.studies()
    assert record.facts.membership == result.membership
    assert [site.charged() for site in sites] == [2, 2]
    for site in sites:
        site.stop()


PROMISE = re.compile(r'<p class="lede">.*?</p>\n<p class="note">.*?</p>', re.DOTALL)
"""What a page says about the guarantee."""


def promise_before(site: RehearsedSite) -> str:
    with store_of(site) as store:
        (record,) = store.studies()
    page = render_study_page(study_outlook(record, site.config, site.folder / "site.toml"))
    return str(PROMISE.findall(page)[0])


def promise_after(folder: Path) -> str:
    return str(PROMISE.findall(reporting.write([folder]).read_text())[0])


def test_facts_count_the_releases_before_a_run() -> None:
    study = tiny_federation(
        privatizer=Gaussian(epsilon=6.0, delta=1e-3, unit="site"),
        trainer=FedSGD(sampling_rate=1.0),
        prior=PriorRelease(noise_multiplier=4.0, unit="site"),
    )
    run_config = study.prepare().run_config
    facts = StudyFacts.of(study, run_config, data="chest", use="train")
    assert facts.membership == attack_bounds(run_config)
    alone = msgspec.structs.replace(facts, earlier=())
    for with_prior, without in zip(facts.membership, alone.membership, strict=True):
        assert with_prior.true_positive_rate > without.true_positive_rate


# --- Decisions -----------------------------------------------------------------------------------

FACTS = StudyFacts(
    data="chest", use="train", terms=Terms(sites=3, rounds=2), guarantee=None, aggregation=None,
    costs=(), values=10, size=40, is_measurement=False,
)  # fmt: skip


@define(eq=False)
class Clock:
    """A clock that a test sets."""

    time: dt.datetime = NOON

    def __call__(self) -> dt.datetime:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[ApprovalStore]:
    trail = AuditTrail(tmp_path / "audit.jsonl", 1, None, now=clock)
    yield ApprovalStore(tmp_path / "approvals", trail, clock)
    trail.close()


def invited(number: int, session: bytes = bytes(16)) -> InvitedStudy:
    return InvitedStudy(session, f"{number:064x}"[::-1], "[federation]", {"cohortium": "1"})


def code(act: Callable[[], object]) -> str:
    try:
        act()
    except RefusalError as error:
        return error.code
    return ""


def ask(store: ApprovalStore, study: InvitedStudy) -> str:
    return code(lambda: store.admit(study, FACTS))


def test_approval_ends_after_its_last_day(store: ApprovalStore, clock: Clock) -> None:
    study = invited(1)
    assert ask(store, study) == "approval"
    store.approve(study.digest, by="A", until=NOON.date() + DAY)
    clock.time = dt.datetime(2027, 3, 2, 23, 59, 59, tzinfo=dt.UTC)
    store.begin(study.digest, study.session)
    clock.time += dt.timedelta(seconds=1)
    assert code(lambda: store.begin(study.digest, study.session)) == "approval"
    with pytest.raises(RefusalError), store.holding(study.digest, study.session):
        pass
    assert store.studies()[0].state == "ended"


def test_clock_set_back_revives_no_approval(store: ApprovalStore, clock: Clock) -> None:
    study = invited(1)
    ask(store, study)
    store.approve(study.digest, by="A", until=NOON.date())
    clock.time = NOON - dt.timedelta(days=30)
    assert ask(store, study) == "approval", "the clock is before the decision"
    clock.time = NOON
    assert ask(store, study) == ""
    for time in (NOON + DAY, NOON):
        clock.time = time
        begins = code(lambda: store.begin(study.digest, study.session))
        assert begins == "approval", "it was seen to have ended"


def test_refusal_does_not_tell_why(store: ApprovalStore, clock: Clock) -> None:
    def reason() -> str:
        with pytest.raises(RefusalError) as error:
            store.admit(invited(1), FACTS)
        return str(error.value)

    waiting = reason()
    store.approve(invited(1).digest, by="A", until=NOON.date())
    store.revoke(invited(1).digest, by="B")
    assert reason() == waiting
    store.approve(invited(1).digest, by="A", until=NOON.date())
    clock.time += DAY
    assert reason() == waiting


def test_waiting_studies_are_bounded(store: ApprovalStore, clock: Clock) -> None:
    for number in range(MAX_WAITING):
        assert ask(store, invited(number)) == "approval"
    assert ask(store, invited(MAX_WAITING)) == "busy"
    assert ask(store, invited(0)) == "approval"
    store.revoke(invited(5).digest, by="A")
    assert ask(store, invited(MAX_WAITING)) == "approval"
    assert ask(store, invited(MAX_WAITING + 1)) == "busy"
    clock.time += dt.timedelta(days=WAITING_DAYS, seconds=1)
    assert ask(store, invited(MAX_WAITING + 1)) == "approval"
    assert [each.state for each in store.studies()] == ["waiting", "revoked"]


def test_files_are_bounded(store: ApprovalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cohortium.deployment.approvals.MAX_STORED", 6)
    assert MAX_STORED > MAX_WAITING
    for number in range(9):
        assert ask(store, invited(number)) == "approval"
        store.revoke(invited(number).digest, by="A")
    assert len(store.studies()) == 6
    for number in range(9, 15):
        assert ask(store, invited(number)) == "approval"
        store.approve(invited(number).digest, by="A", until=NOON.date())
    assert ask(store, invited(15)) == "busy"


def test_old_file_that_stays_is_a_refusal(
    store: ApprovalStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stays(_path: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("cohortium.deployment.approvals.MAX_STORED", 1)
    ask(store, invited(1))
    store.revoke(invited(1).digest, by="A")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", stays)
        assert ask(store, invited(2)) == "disk"
    assert "Permission denied" in caplog.text
    assert ask(store, invited(2)) == "approval"


def test_revoked_study_does_not_wait_again(store: ApprovalStore) -> None:
    ask(store, invited(1))
    store.revoke(invited(1).digest, by="A")
    ask(store, invited(1))
    assert [each.state for each in store.studies()] == ["revoked"]
    store.approve(invited(1).digest, by="A", until=NOON.date())
    assert ask(store, invited(1)) == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"until": NOON.date() - DAY}, "between today"),
        ({"until": NOON.date() + 3000 * DAY}, "between today"),
        ({"runs": 0}, "covers 1 to 1000 runs"),
        ({"by": " "}, "name of a person"),
        ({"by": "A\x1b[2J"}, "name of a person"),
        ({"by": "A" * 101}, "name of a person"),
    ],
)
def test_impossible_approval_is_refused(
    store: ApprovalStore, arguments: dict[str, Any], words: str
) -> None:
    ask(store, invited(1))
    with pytest.raises(RequestError, match=words):
        store.approve(
            invited(1).digest, **{"by": "A", "until": NOON.date(), "runs": 1, **arguments}
        )
    assert store.studies()[0].state == "waiting"


def test_study_is_named_by_unambiguous_digits(store: ApprovalStore) -> None:
    for number in (0x1, 0x100000001):
        ask(store, invited(number))
    for digits, words in (("1", "8 or more"), ("10000000", "2 studies"), ("f" * 9, "no study")):
        with pytest.raises(RequestError, match=words):
            store.find(digits)
    assert store.find("100000001").digest == invited(0x100000001).digest


def test_decision_is_in_trail_before_it_counts(store: ApprovalStore, tmp_path: Path) -> None:
    study = invited(1)
    ask(store, study)
    trail = tmp_path / "audit.jsonl"
    whole = trail.read_bytes()
    trail.write_bytes(whole[:-20])
    with pytest.raises(RunError, match="Nothing is approved"):
        store.approve(study.digest, by="A", until=NOON.date())
    assert ask(store, study) == "approval"
    trail.write_bytes(whole)
    store.approve(study.digest, by="A", until=NOON.date())
    assert ask(store, study) == ""
    with trail.open("rb") as file:
        assert b"study-approved" in [*links(file)][-1].entry
    trail.write_bytes(whole)
    with pytest.raises(RunError, match="the study is revoked, but"):
        store.revoke(study.digest, by="A")
    assert ask(store, study) == "approval"
