"""Stored state of a run: a checkpoint and a log.

A *checkpoint* is one file, which every round replaces as a whole. The *log* next to it grows by one
line for every attempt that begins and every round that completes. The log also prevents two
processes from driving the same run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import attrs
import msgspec
from attrs import define, field, frozen

from cohortium.errors import MessageError, RefusalError, RequestError, RunError, StudyError
from cohortium.messages.codec import Message, decode_either, encode
from cohortium.roles import events
from cohortium.storage import tensor_tree
from cohortium.storage.append_log import FileJournal
from cohortium.storage.atomic import atomic_write

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FORMAT = 2
"""Version of a checkpoint's content."""


@frozen(kw_only=True)
class RunFingerprint:
    """Digests of a run's study, data and plan, and its versions.

    A resumed run must have the same fingerprint, except for the versions.

    Attributes:
        study: SHA-256 of the study file.
        data: SHA-256 of the training data and their partition. Empty if the coordinator has no
            data.
        plan: SHA-256 of the cost of an attempt and the number of attempts.
        versions: Versions of Python, packages and plugins. Other versions may compute other bits.
    """

    study: str
    data: str
    plan: str
    versions: Mapping[str, str]

    def changes(self, now: RunFingerprint) -> tuple[str, ...]:
        """Return the versions that differ in `now`, one entry each."""
        names = sorted({*self.versions, *now.versions})
        pairs = [(n, self.versions.get(n, "none"), now.versions.get(n, "none")) for n in names]
        return tuple(f"{name} {new} in place of {old}" for name, old, new in pairs if old != new)

    def require(self, now: RunFingerprint) -> None:
        """Refuse to continue with another study, other data or another plan.

        Raises:
            StudyError: It is another study, other data, or another plan.
        """
        which = ", ".join(self.changes(now)) or "no version has changed"
        if self.study != now.study:
            raise StudyError(
                "the study is not the one with which the run started; put its study.toml back as "
                f"it was ({which}), or start another run."
            )
        if self.data != now.data:
            raise StudyError(
                "the training data, or their partition, differ from those with which the run "
                "started; put them back, or start another run."
            )
        if self.plan != now.plan:
            raise StudyError(
                "the installed code plans this study's privacy differently from when the run "
                f"started ({which}); resume with those versions, or start another run."
            )


@frozen(kw_only=True)
class Checkpoint:
    """State of a run between two rounds.

    A run continues from it with the same bits.

    Guarantees:
        `write` returns only when the file survives a power cut.
        Until then, the previous checkpoint is unchanged.
        `read` returns the written values, to the last bit, or raises an error.

    Attributes:
        session: 16 bytes that name the run.
        rounds: Number of completed rounds.
        attempt: Number of the next attempt, if none has begun since.
        seconds: Seconds that the run had taken.
        fingerprint: Fingerprint of the run at its start.
        states: Names of the files with the trainer state of simulated sites.
        server: State of the coordinator (see `Coordinator.state`).
    """

    session: bytes
    rounds: int
    attempt: int
    seconds: float
    fingerprint: RunFingerprint
    states: tuple[str, ...] = ()
    server: Mapping[str, Any] = field(repr=False)

    def write(self, path: Path) -> None:
        """Write the checkpoint to `path`, in place of the previous one.

        Raises:
            OSError: The checkpoint cannot be written. The previous one is unchanged.
            RunError: The server optimizer has a value that cannot be stored.
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
        """Return the checkpoint at `path`, or None if there is none.

        Raises:
            RunError: The file is damaged, is not a checkpoint, or cannot be read.
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
        try:
            found = msgspec.convert(content, _Content)
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            reason = str(error).replace("`", "").rstrip(".")
            raise RunError(
                f"{path} is no checkpoint: {reason}; put the whole folder back as it was, or start "
                "another run."
            ) from error
        return cls(
            session=bytes.fromhex(found.session),
            rounds=found.rounds,
            attempt=found.attempt,
            seconds=found.seconds,
            fingerprint=RunFingerprint(**msgspec.structs.asdict(found.origin)),
            states=found.states,
            server=found.server,
        )


_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]


class _Origin(msgspec.Struct, forbid_unknown_fields=True):
    """A fingerprint as a checkpoint has it."""

    study: str
    data: str
    plan: str
    versions: dict[str, str]


class _Content(msgspec.Struct, forbid_unknown_fields=True):
    """The tree of a checkpoint. Its server's part is the coordinator's to judge."""

    format: int
    session: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    rounds: _Count
    attempt: _Count
    seconds: Annotated[float, msgspec.Meta(ge=0)]
    origin: _Origin
    states: tuple[str, ...]
    server: dict[str, Any]


class LogOpened(Message, frozen=True, tag="log-opened"):
    """First line of a run's log.

    A log without it was lost.
    """


class AttemptLogged(Message, frozen=True, tag="attempt-started"):
    """Record of an attempt's number.

    No other attempt may have this number, even if this one fails.
    """

    attempt: int


class RoundLogged(Message, frozen=True, tag="round-completed"):
    """Record of a completed round.

    The round counts once a checkpoint includes it. If two records belong to one round, the later
    one counts.
    """

    event: events.RoundCompleted


class ResultLogged(Message, frozen=True, tag="run-completed"):
    """Record that the run has its result."""


@define(eq=False)
class RunLog:
    """Log of a run, open in this process and in no other.

    Guarantees:
        The records of `log_attempt`, `log_round` and `log_result` survive a power cut.
        On POSIX, only one process at a time has the log open.

    Attributes:
        last_attempt: The highest number of an attempt that has begun, or -1 before the first.
        is_complete: Whether the run has its result.
        is_opened: Whether the log has its first line.
    """

    _path: Path
    _journal: FileJournal
    last_attempt: int = -1
    is_complete: bool = False
    is_opened: bool = False
    _rounds: dict[int, events.RoundCompleted] = field(factory=dict)

    @classmethod
    def open(cls, path: Path) -> RunLog:
        """Open the log at `path`, new or old.

        Raises:
            RequestError: Another process has the log open.
            RunError: The log is damaged, or cannot be opened.
        """
        try:
            journal = FileJournal(path)
        except RunError as error:
            if isinstance(error.__cause__, BlockingIOError):
                raise RequestError(
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
        """Return the first `rounds` rounds, in order.

        Raises:
            RunError: One of the rounds is missing.
        """
        missing = [number for number in range(rounds) if number not in self._rounds]
        if missing:
            raise RunError(
                f"{self._path} does not know of round {missing[0] + 1}, which the checkpoint "
                "counts; put the whole folder back as it was."
            )
        return [self._rounds[number] for number in range(rounds)]

    def log_opening(self) -> None:
        """Record once that the run exists.

        Raises:
            RunError: The record cannot be written.
        """
        if not self.is_opened:
            self._append(LogOpened())
            self.is_opened = True

    def log_attempt(self, attempt: int) -> None:
        """Record that an attempt begins, before any site receives a request.

        Raises:
            RunError: The record cannot be written, so the attempt must not begin.
        """
        self._append(AttemptLogged(attempt))
        self.last_attempt = max(self.last_attempt, attempt)

    def log_round(self, event: events.RoundCompleted) -> None:
        """Record the result of a round, before the checkpoint that counts it.

        Raises:
            RunError: The record cannot be written.
        """
        self._append(RoundLogged(event))

    def log_result(self) -> None:
        """Record that the run has its result.

        Raises:
            RunError: The record cannot be written.
        """
        self._append(ResultLogged())
        self.is_complete = True

    def close(self) -> None:
        """Close the log, so that another process can open it."""
        self._journal.close()

    def _append(self, line: Message) -> None:
        try:
            self._journal.append(encode(line))
        except RefusalError as error:
            cause = error.__cause__
            why = f": {cause.strerror}" if isinstance(cause, OSError) else ""
            raise RunError(f"cannot write {self._path}{why}.") from error
