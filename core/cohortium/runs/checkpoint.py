"""What a run must not forget: how things stood after its last round, and what it had begun since.

A *checkpoint* is one file, replaced as a whole after every round.  The *log* beside it grows by a
line for every attempt that is begun and every round that is finished; it is also what keeps two
processes from driving one run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
from attrs import define, field, frozen

from cohortium.errors import MessageError, RefusalError, RunError, StudyError
from cohortium.messages.codec import Message, decode_either, encode
from cohortium.roles import events
from cohortium.storage import tensor_tree
from cohortium.storage.append_log import FileJournal
from cohortium.storage.atomic import atomic_write

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FORMAT = 2
"""Of a checkpoint's content."""


@frozen(kw_only=True)
class RunFingerprint:
    """What a run was begun with, and must go on with: digests, and who was there.

    Attributes:
        study: SHA-256 of its study file.
        data: Of the training data and how they were dealt; empty where the coordinator has none.
        plan: Of what an attempt costs, and of how many there may be.
        versions: Of Python, packages and plugins; others make other bits, perhaps.
    """

    study: str
    data: str
    plan: str
    versions: Mapping[str, str]

    def changes(self, now: RunFingerprint) -> tuple[str, ...]:
        """What is of another version `now`, one entry each."""
        names = sorted({*self.versions, *now.versions})
        pairs = [(n, self.versions.get(n, "none"), now.versions.get(n, "none")) for n in names]
        return tuple(f"{name} {new} in place of {old}" for name, old, new in pairs if old != new)

    def require(self, now: RunFingerprint) -> None:
        """Refuse to go on with what the run was not begun with.

        Raises:
            StudyError: It is another study, other data, or another plan.
        """
        which = ", ".join(self.changes(now)) or "no version has changed"
        if self.study != now.study:
            raise StudyError(
                "the study is not the one that the run was begun with; put its study.toml back as "
                f"it was ({which}), or begin another run."
            )
        if self.data != now.data:
            raise StudyError(
                "the training data, or how they are dealt, are not what the run was begun with; "
                "put them back, or begin another run."
            )
        if self.plan != now.plan:
            raise StudyError(
                "the installed code plans this study's privacy otherwise than when the run was "
                f"begun ({which}); go on with the versions of then, or begin another run."
            )


@frozen(kw_only=True)
class Checkpoint:
    """A run between two rounds: all that it takes to go on with the same bits.

    Guarantees:
        `write` has returned only when the file outlives a power cut; until then the one before
        it stands.  `read` gives what was written, to the last bit, or an error.

    Attributes:
        session: 16 bytes that name the run.
        rounds: That were complete.
        attempt: The number of the next attempt, if none has been begun since.
        seconds: That the run had taken.
        fingerprint: What it was begun with.
        states: Names of the files of what simulated sites keep.
        server: The coordinator's own; see `Coordinator.state`.
    """

    session: bytes
    rounds: int
    attempt: int
    seconds: float
    fingerprint: RunFingerprint
    states: tuple[str, ...] = ()
    server: Mapping[str, Any] = field(repr=False)

    def write(self, path: Path) -> None:
        """Put it at `path`, in place of the one before.

        Raises:
            OSError: It cannot be written; the one before stands.
            RunError: The server optimizer keeps something that cannot be written down.
        """
        origin = {**attrs.asdict(self.fingerprint), "versions": dict(self.fingerprint.versions)}
        content = {
            "format": FORMAT,
            "session": self.session.hex(),
            "rounds": self.rounds,
            "attempt": self.attempt,
            "seconds": self.seconds,
            "origin": origin,
            "states": self.states,
            "server": self.server,
        }
        atomic_write(path, tensor_tree.dumps(content))

    @classmethod
    def read(cls, path: Path) -> Checkpoint | None:
        """The checkpoint at `path`, or None where none is.

        Raises:
            RunError: It is damaged, is none, or cannot be read.
        """
        try:
            content = tensor_tree.read(path)
        except FileNotFoundError:
            return None
        known = content.get("format") if isinstance(content, dict) else None
        if known != FORMAT:
            raise RunError(
                f"{path} is no checkpoint of format {FORMAT}; use the version of cohortium that "
                "wrote it."
            )
        return cls(
            session=bytes.fromhex(content["session"]),
            rounds=content["rounds"],
            attempt=content["attempt"],
            seconds=content["seconds"],
            fingerprint=RunFingerprint(**content["origin"]),
            states=content["states"],
            server=content["server"],
        )


class LogOpened(Message, frozen=True, tag="log-opened"):
    """A run's log begins: one that is empty was lost."""


class AttemptLogged(Message, frozen=True, tag="attempt-started"):
    """An attempt's number is taken: whatever becomes of it, no other may have it."""

    attempt: int


class RoundLogged(Message, frozen=True, tag="round-completed"):
    """A round is over.  It counts once a checkpoint says so: of two for one round, the later."""

    event: events.RoundCompleted


class ResultLogged(Message, frozen=True, tag="run-completed"):
    """The run has its result."""


@define(eq=False)
class RunLog:
    """The log of a run, open in this process and in no other.

    Guarantees:
        What `log_attempt`, `log_round` and `log_result` have noted outlives a power cut.
        On POSIX one process at a time has it open.

    Attributes:
        last_attempt: The highest number of an attempt that was begun; -1 before the first.
        is_complete: Whether the run has its result.
        is_opened: Whether it has its first line.
    """

    _path: Path
    _journal: FileJournal
    last_attempt: int = -1
    is_complete: bool = False
    is_opened: bool = False
    _rounds: dict[int, events.RoundCompleted] = field(factory=dict)

    @classmethod
    def open(cls, path: Path) -> RunLog:
        """The log at `path`, new or old.

        Raises:
            StudyError: Another process has it open.
            RunError: It is damaged, or cannot be opened.
        """
        try:
            journal = FileJournal(path)
        except RunError as error:
            if isinstance(error.__cause__, BlockingIOError):
                raise StudyError(
                    f"another process is driving the run in {path.parent.parent}; let it, or stop "
                    "it first."
                ) from error
            raise
        log = cls(path, journal)
        try:
            log._load()
        except BaseException:
            journal.close()
            raise
        return log

    def _load(self) -> None:
        for entry in self._journal.entries():
            try:
                line: Message = decode_either(
                    entry, LogOpened, AttemptLogged, RoundLogged, ResultLogged
                )
            except MessageError as error:
                raise RunError(f"{self._path} is not the log of a run: {error}") from error
            self.is_opened = True
            if isinstance(line, AttemptLogged):
                self.last_attempt = max(self.last_attempt, line.attempt)
            elif isinstance(line, RoundLogged):
                self._rounds[line.event.round] = line.event
            elif isinstance(line, ResultLogged):
                self.is_complete = True

    def history(self, rounds: int) -> list[events.RoundCompleted]:
        """The first `rounds` rounds, in order.

        Raises:
            RunError: One of them is missing.
        """
        missing = [number for number in range(rounds) if number not in self._rounds]
        if missing:
            raise RunError(
                f"{self._path} does not know of round {missing[0] + 1}, which the checkpoint "
                "counts; put the whole folder back as it was."
            )
        return [self._rounds[number] for number in range(rounds)]

    def log_opening(self) -> None:
        """Note, once, that there is a run.

        Raises:
            RunError: It cannot be noted.
        """
        if not self.is_opened:
            self._append(LogOpened())
            self.is_opened = True

    def log_attempt(self, attempt: int) -> None:
        """Note that an attempt begins, before anyone is asked anything.

        Raises:
            RunError: It cannot be noted, so the attempt must not begin.
        """
        self._append(AttemptLogged(attempt))
        self.last_attempt = max(self.last_attempt, attempt)

    def log_round(self, event: events.RoundCompleted) -> None:
        """Note what a round came to, before the checkpoint that counts it.

        Raises:
            RunError: It cannot be noted.
        """
        self._append(RoundLogged(event))

    def log_result(self) -> None:
        """Note that the run has its result.

        Raises:
            RunError: It cannot be noted.
        """
        self._append(ResultLogged())
        self.is_complete = True

    def close(self) -> None:
        """Let another process have it."""
        self._journal.close()

    def _append(self, line: Message) -> None:
        try:
            self._journal.append(encode(line))
        except RefusalError as error:
            cause = error.__cause__
            why = f": {cause.strerror}" if isinstance(cause, OSError) else ""
            raise RunError(f"cannot write {self._path}{why}.") from error
