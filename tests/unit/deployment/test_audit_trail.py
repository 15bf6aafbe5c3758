"""A site's trail: an entry before each answer, nothing private, and a check that finds changes."""

from __future__ import annotations

import datetime as dt
import errno
import hashlib
import io
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import msgspec
import pytest

from cohortium.crypto.randomness import Randomness
from cohortium.crypto.signing import SigningKey
from cohortium.deployment import trail_entries as entries
from cohortium.deployment.audit_trail import AuditTrail
from cohortium.deployment.log_throttle import MAX_SENTENCES
from cohortium.deployment.trail_check import (
    check_lines,
    check_trail,
    is_signed_by,
    last_entries,
)
from cohortium.deployment.trail_entries import SignedHead
from cohortium.errors import RecordError, RequestError, RunError
from cohortium.messages.codec import decode, encode
from cohortium.messages.deployment import (
    Acceptance,
    IdentifyReply,
    IdentifyRequest,
    Invitation,
)
from cohortium.messages.run import Refusal, Reply, Request
from cohortium.storage.hash_chain import HashChain, Head, Link
from cohortium.text import is_printable
from tests.support.altered_lines import altered, is_cut
from tests.support.command_line import cohortium
from tests.support.rehearsed_site import (
    SITES,
    RehearsedSite,
    again,
    coordinator_of,
    copy_site,
    rehearse,
)

KEYS = [SigningKey.generate(Randomness.insecure_from_seed(seed)) for seed in range(3)]
EDITS = 10_000
NOON = dt.datetime(2027, 3, 1, 12, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Invitation]:
    folder = tmp_path_factory.mktemp("rehearsed") / "all"
    return folder, rehearse(folder)


@pytest.fixture
def site(rehearsed: tuple[Path, Invitation], tmp_path: Path) -> Iterator[RehearsedSite]:
    found = RehearsedSite(copy_site(rehearsed[0], tmp_path / "site-1"))
    yield found
    found.stop()


def first_request(invitation: Invitation, attempt: int = 0) -> bytes:
    coordinator = coordinator_of(invitation)
    coordinator.begin_attempt(attempt, attempt, range(SITES))
    return coordinator.next_requests().broadcast


def test_each_answer_has_an_entry(site: RehearsedSite, rehearsed: tuple[Path, Invitation]) -> None:
    invitation = again(rehearsed[1])
    assert isinstance(site.send(invitation), Acceptance)
    assert isinstance(site.send(invitation), Acceptance)
    request = first_request(invitation)
    reply = site.server.answer(request, b"")
    assert site.server.answer(request, b"") == reply, "the same answer is no other entry"
    opened, accepted, answered = site.trail()
    assert isinstance(opened, entries.Opened)
    assert isinstance(accepted, entries.RunAccepted)
    assert isinstance(answered, entries.Answered)
    assert (opened.site, accepted.use) == (1, "train")
    assert accepted.session == answered.session == invitation.session.hex()
    assert answered.sha256 == hashlib.sha256(reply).hexdigest()
    assert (answered.attempt, answered.size, answered.has_release) == (0, len(reply), True)
    site.restart()
    site.server.record_start()
    assert isinstance(site.send(first_request(invitation, 1)), Reply)
    assert site.events()[3:] == ["started", "run-accepted", "answered"]


def test_trail_has_no_reason_and_nothing_private(
    site: RehearsedSite, rehearsed: tuple[Path, Invitation]
) -> None:
    invitation = again(rehearsed[1])
    site.send(invitation)
    site.send(first_request(invitation))
    other = encode(Request(invitation.session, 0, 9, 0, None, b""))
    for message in (other, b"?", again(invitation, study=invitation.study.replace("6.0", "60.0"))):
        assert isinstance(site.send(message), Refusal)
    text = (site.folder / "audit.jsonl").read_text()
    config = site.config
    for word in (config.dataset_id, "npz", str(site.folder), "policy", "budget", "out-of", "miss"):
        assert word not in text
    assert config.key is not None
    assert config.key.private.hex() not in text
    assert site.events().count("refused") == 3


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_nothing_leaves_or_is_charged_without_room_for_its_entry(
    site: RehearsedSite, rehearsed: tuple[Path, Invitation], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> NoReturn:
        raise FULL

    invitation = again(rehearsed[1])
    with monkeypatch.context() as patch:
        patch.setattr(HashChain, "_write", full)
        refusal = site.send(invitation)
    assert isinstance(refusal, Refusal)
    assert (refusal.code, refusal.reason) == ("trail", "the site's trail cannot be written.")
    assert isinstance(site.send(invitation), Acceptance)
    with monkeypatch.context() as patch:
        patch.setattr(HashChain, "_write", full)
        assert isinstance(site.send(first_request(invitation)), Refusal)
    assert site.charged() == 0
    assert isinstance(site.send(first_request(invitation)), Reply)


def test_refusals_and_identify_replies_have_a_bounded_number_of_entries(
    site: RehearsedSite,
) -> None:
    for _ in range(3 * MAX_SENTENCES):
        site.send(b"?")
        decode(site.server.answer(encode(IdentifyRequest(bytes(32))), b""), IdentifyReply)
    assert site.events() == ["opened", *["refused", "identified"] * MAX_SENTENCES]


def test_site_does_not_identify_itself_without_an_entry(
    site: RehearsedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> NoReturn:
        raise FULL

    monkeypatch.setattr(HashChain, "_write", full)
    refusal = site.send(encode(IdentifyRequest(bytes(32))))
    assert isinstance(refusal, Refusal)
    assert refusal.code == "trail"


def test_omitted_refusals_are_counted(tmp_path: Path) -> None:
    seconds = 0.0
    trail = AuditTrail(tmp_path / "trail", 0, None, clock=lambda: seconds)
    for _ in range(MAX_SENTENCES + 7):
        trail.refused(b"")
    seconds = 61.0
    trail.refused(b"")
    trail.identified()
    trail.close()
    *_, refused, identified = (tmp_path / "trail").read_bytes().splitlines()
    assert b'"omitted":7' in refused
    assert b'"omitted":0' in identified


# --- The check -----------------------------------------------------------------------------------


def write_trail(path: Path, *keys: SigningKey | None, site: int = 0) -> SignedHead:
    """Write a trail that was opened with each of `keys` in turn."""
    for key in keys:
        trail = AuditTrail(path, site, key, now=lambda: NOON)
        trail.started()
        trail.close()
    return check_trail(path).head


def test_check_follows_a_change_of_key(tmp_path: Path) -> None:
    path = tmp_path / "trail"
    write_trail(path, KEYS[0], KEYS[1])
    found = check_trail(path, [KEYS[1].public])
    assert found.keys == (KEYS[0].public.hex(), KEYS[1].public.hex())
    assert found.counts == {"opened": 1, "key-changed": 1, "started": 2}
    for trusted in ([KEYS[0].public], [KEYS[2].public], []):
        with pytest.raises(RecordError, match="not the site's present key"):
            check_trail(path, trusted)


def test_trail_stays_signed(tmp_path: Path) -> None:
    path = tmp_path / "trail"
    write_trail(path, KEYS[0])
    with pytest.raises(RunError, match="names no signing_key"):
        AuditTrail(path, 0, None)
    chain = HashChain(path)
    chain.append(b'{"event":"key-changed","at":"2027-03-01T12:00:00Z","key":""}')
    chain.close()
    with pytest.raises(RecordError, match="ends the signatures"):
        check_trail(path)


def test_rewritten_trail_is_signed_by_another_key(tmp_path: Path) -> None:
    path, forged = tmp_path / "trail", tmp_path / "forged"
    head = write_trail(path, KEYS[0])
    write_trail(forged, KEYS[2])
    assert check_trail(forged).head.head.number == head.head.number
    with pytest.raises(RecordError, match="not the site's present key"):
        check_trail(forged, [KEYS[0].public])
    # With the true name of the key, and without its private half.
    text = forged.read_text().replace(KEYS[2].public.hex(), KEYS[0].public.hex())
    forged.unlink()
    chain = HashChain(forged, KEYS[2].sign)
    for line in text.splitlines():
        start = line.index('"entry":') + 8
        chain.append(line[start : line.index(',"sha256"', start)].encode())
    chain.close()
    with pytest.raises(RecordError, match="the signature of line 1 is not the site's"):
        check_trail(forged, [KEYS[0].public])


def forge(path: Path, key: SigningKey) -> None:
    """Replace all but the first line by others, as somebody does who has another key."""
    first = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(first)
    forger = AuditTrail(path, 0, key, now=lambda: NOON)
    forger.accepted(bytes(16), "00", "train", "00")
    forger.close()


def test_lines_of_a_forger_are_not_vouched_for_by_later_ones(tmp_path: Path) -> None:
    path = tmp_path / "trail"
    write_trail(path, KEYS[0])
    forge(path, KEYS[2])
    # The site goes on, and its key signs the last line again.
    write_trail(path, KEYS[0])
    found = check_trail(path, [KEYS[0].public])
    assert (found.keys[1], found.changes) == (KEYS[2].public.hex(), (2, 4))
    with pytest.raises(RecordError, match="lines from 2 on are signed by the key"):
        check_trail(path, [KEYS[0].public], replaced=[KEYS[1].public])
    assert check_trail(path, [KEYS[0].public], replaced=[KEYS[2].public]).keys == found.keys


def test_no_signature_follows_unsigned_lines_of_a_forger(tmp_path: Path) -> None:
    path = tmp_path / "trail"
    write_trail(path, KEYS[0])
    # Somebody without any key puts an unsigned trail in its place.
    path.unlink()
    forger = AuditTrail(path, 0, None, now=lambda: NOON)
    forger.accepted(bytes(16), "00", "train", "00")
    forger.close()
    before = path.read_bytes()
    with pytest.raises(RunError, match=r"is unsigned, .* name another file for a trail"):
        AuditTrail(path, 0, KEYS[0])
    assert path.read_bytes() == before
    # A site without the rule would have signed on.
    entry = f'{{"event":"key-changed","at":"2027-03-01T12:00:00Z","key":"{KEYS[0].public.hex()}"}}'
    chain = HashChain(path, KEYS[0].sign)
    chain.append(entry.encode())
    chain.close()
    for replaced in (None, [], [KEYS[1].public]):
        with pytest.raises(RecordError, match="lines before 3 are unsigned"):
            check_trail(path, [KEYS[0].public], replaced=replaced)


def test_nothing_follows_a_line_without_the_signature_of_the_key_in_force(tmp_path: Path) -> None:
    path = tmp_path / "trail"
    write_trail(path, KEYS[0])
    chain = HashChain(path, KEYS[2].sign)
    chain.append(b'{"event":"started","at":"2027-03-01T12:00:00Z","version":"1"}')
    chain.close()
    before = path.read_bytes()
    with pytest.raises(RunError, match="the signature of its last line, 3, is not the site's"):
        AuditTrail(path, 0, KEYS[0])
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "entry",
    [
        b'{"event":"started"}',
        b'{"event":"unknown","at":"2027-03-01T12:00:00Z"}',
        b'{"event":"started","at":"2027-03-01T12:00:00Z","version":"1","diagnosis":"x"}',
        b'{"event":"opened","at":"2027-03-01T12:00:00Z","format":1,"trail":"","site":0,"key":""}',
    ],
)
def test_line_that_is_no_entry_is_found(tmp_path: Path, entry: bytes) -> None:
    write_trail(tmp_path / "trail", None)
    chain = HashChain(tmp_path / "trail")
    chain.append(entry)
    chain.close()
    with pytest.raises(RecordError, match="line 3"):
        check_trail(tmp_path / "trail")


def test_noted_head_shows_loss_of_last_lines(tmp_path: Path) -> None:
    path = tmp_path / "trail"
    noted = write_trail(path, KEYS[0])
    assert SignedHead.parse(str(noted)) == noted
    whole = path.read_bytes()
    write_trail(path, KEYS[0])
    assert check_trail(path, contains=noted).head.head.number == 3
    path.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 1])
    assert check_trail(path).head.head.number == 1, "the file alone cannot show it"
    with pytest.raises(RecordError, match="lines at its end were removed"):
        check_trail(path, contains=noted)
    path.unlink()
    write_trail(path, KEYS[0])
    with pytest.raises(RecordError, match="the trail was rewritten"):
        check_trail(path, contains=noted)
    with pytest.raises(RecordError, match="the trail of site 0, not 4"):
        check_trail(path, contains=SignedHead(4, noted.head, noted.signature))


def test_ten_thousand_random_edits_removals_and_swaps_are_found(tmp_path: Path) -> None:
    path = tmp_path / "trail"
    write_trail(path, *[KEYS[0]] * 5)
    whole = path.read_bytes()
    lines, rng, num_found = whole.splitlines(keepends=True), random.Random(7), 0
    while num_found < EDITS:
        data = altered(lines, rng)
        if is_cut(data, whole):
            continue
        try:
            check_lines(io.BytesIO(data), [KEYS[0].public])
        except RecordError:
            num_found += 1
        else:
            raise AssertionError(data)


def test_empty_or_missing_trail_is_no_trail(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="No such file"):
        check_trail(tmp_path / "trail")
    (tmp_path / "trail").touch()
    with pytest.raises(RecordError, match="it has no line"):
        check_trail(tmp_path / "trail")


def test_clock_set_back_and_torn_line_are_told(tmp_path: Path) -> None:
    path = tmp_path / "trail"
    write_trail(path, KEYS[0])
    trail = AuditTrail(path, 0, KEYS[0], now=lambda: NOON - dt.timedelta(days=1))
    trail.started()
    trail.close()
    path.write_bytes(path.read_bytes() + b'{"number":4,"prev')
    found = check_trail(path, [KEYS[0].public])
    assert found.set_back == (3,)
    assert found.is_torn
    assert is_signed_by(found.head, [KEYS[0].public])
    assert not is_signed_by(found.head, [KEYS[1].public])


# --- At the terminal -----------------------------------------------------------------------------


def test_two_hospitals_exchange_heads(rehearsed: tuple[Path, Invitation], tmp_path: Path) -> None:
    folder = tmp_path / "site-1"
    RehearsedSite(copy_site(rehearsed[0], folder)).stop()
    RehearsedSite(rehearsed[0] / "site-0").stop()
    _, head, _ = cohortium("trail", str(rehearsed[0] / "site-0" / "site.toml"), "--head")
    head = head.strip()
    own = str(folder / "site.toml")
    status, out, _ = cohortium("trail", own, "--note", head)
    assert status == 0
    assert "head noted: site 0, number 1" in out
    assert "site 1: 2 lines" in out
    for wrong, words in (
        (head.replace("line 1", "line 2"), "site 0 has not signed that head"),
        (head.replace("site 0", "site 7"), "site 7 has not signed that head"),
        (str(check_trail(folder / "audit.jsonl").head), "head of this site's own trail"),
        ("line 1", "is no head of a trail"),
    ):
        with pytest.raises((RecordError, RequestError), match=words):
            cohortium("trail", own, "--note", wrong)
    directory = str(rehearsed[0] / "directory.txt")
    theirs = str(rehearsed[0] / "site-0" / "audit.jsonl")
    status, out, err = cohortium(
        "trail", theirs, "--check", "--key-directory", directory, "--contains", head
    )
    assert (status, err) == (0, "")
    assert "it contains the head that was noted, line 1" in out
    status, out, err = cohortium("trail", theirs, "--check")
    assert "nobody vouches for that key" in err


def test_command_fails_for_an_altered_trail(
    rehearsed: tuple[Path, Invitation], tmp_path: Path
) -> None:
    folder = tmp_path / "site-1"
    RehearsedSite(copy_site(rehearsed[0], folder)).stop()
    path, own = folder / "audit.jsonl", str(folder / "site.toml")
    assert cohortium("trail", own, "--check")[0] == 0
    path.write_bytes(path.read_bytes().replace(b'"site":1', b'"site":2'))
    with pytest.raises(RecordError, match="line 1 is not what was written"):
        cohortium("trail", own, "--check")
    with pytest.raises(RunError, match="line 1 is not what was written"):
        RehearsedSite(folder)


def test_name_in_another_trail_forges_no_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    trail = AuditTrail(path, 0, KEYS[0], now=lambda: NOON)
    forged = "A. Meyer\n     9  2027-03-01 12:00:00  study revoked\x1b[2J"
    approved = entries.StudyApproved(at=NOON, study="ab" * 32, by=forged, until=NOON.date(), runs=1)
    trail.write(approved)
    trail.close()
    (number, sentence) = last_entries(path, 1)[0]
    assert number == 2
    assert "by A. Meyer\\n     9" in sentence
    assert is_printable(sentence)


def test_entry_is_shown_in_words(tmp_path: Path) -> None:
    trail = AuditTrail(tmp_path / "audit.jsonl", 0, KEYS[0], now=lambda: NOON)
    trail.answered(Request(bytes(16), 3, 4, 0, None, b""), b"?", has_release=True)
    trail.close()
    ((_, sentence),) = last_entries(tmp_path / "audit.jsonl", 1)
    assert (
        "answered: session 000000000000…, round 3, attempt 4, stage 0, has release yes" in sentence
    )


@pytest.mark.parametrize("field", ["key", "trail"])
def test_digits_with_an_end_of_line_are_no_entry(field: str) -> None:
    known = {"event": "opened", "at": NOON, "format": 1, "trail": "ab", "site": 0, "key": "ab"}
    for value, is_entry in (("cd", True), ("cd\n", False), ("c", False)):
        data = msgspec.json.encode({**known, field: value})
        link = Link(head=Head(1), entry=data, signature=b"")
        if is_entry:
            assert isinstance(entries.decode_entry(link), entries.Opened)
        else:
            with pytest.raises(RecordError, match="line 1 is no entry"):
                entries.decode_entry(link)


def later(site: RehearsedSite, invitation: Invitation) -> Path:
    """Return the answer's file, whose time is a minute after the trail was opened."""
    path = site.folder / "runs" / invitation.session.hex() / "reply"
    moment = time.time() + 60
    os.utime(path, (moment, moment))
    return path


def test_answer_without_its_line_is_found(
    site: RehearsedSite, rehearsed: tuple[Path, Invitation]
) -> None:
    """Lines at the end are gone, or one looks as if a crash had torn it."""
    invitation = again(rehearsed[1])
    site.send(invitation)
    site.send(first_request(invitation))
    later(site, invitation)
    path, own = site.folder / "audit.jsonl", str(site.folder / "site.toml")
    status, out, _ = cohortium("trail", own, "--check")
    assert (status, "none altered" in out) == (0, True)
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for kept in (start, start + 40):
        path.write_bytes(whole[:kept])
        assert check_trail(path).is_torn == (kept > start)
        for option in ("--check", "--head"):
            with pytest.raises(RecordError, match=r"the last answer in run .* has no line"):
                cohortium("trail", own, option)


def test_older_ledger_is_found(
    site: RehearsedSite, rehearsed: tuple[Path, Invitation], caplog: pytest.LogCaptureFixture
) -> None:
    invitation = again(rehearsed[1])
    ledger = site.config.account.ledger.path
    older = ledger.read_bytes()
    site.send(invitation)
    site.send(first_request(invitation))
    own = str(site.folder / "site.toml")
    assert cohortium("trail", own, "--check")[0] == 0
    site.server.self_check()
    told = "the ledger has no charge for 1 of 1 releases"
    assert told not in caplog.text
    ledger.write_bytes(older)
    with pytest.raises(RecordError, match=told):
        cohortium("trail", own, "--check")
    site.restart()
    site.server.self_check()
    assert told in caplog.text


def test_older_files_do_not_contradict_a_new_trail(
    site: RehearsedSite, rehearsed: tuple[Path, Invitation]
) -> None:
    invitation = again(rehearsed[1])
    site.send(invitation)
    site.send(first_request(invitation))
    os.utime(site.folder / "runs" / invitation.session.hex() / "reply", (1e9, 1e9))
    site.stop()
    (site.folder / "audit.jsonl").unlink()
    site.start()
    assert cohortium("trail", str(site.folder / "site.toml"), "--check")[0] == 0
