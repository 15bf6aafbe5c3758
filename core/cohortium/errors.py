"""Errors for users: one sentence with fault, place and remedy.

CohortiumError
├── StudyError               a study, a site file or a composed part is wrong
│   └── NetworkError         a network cannot be made, or does not fit its study
├── RequestError             an argument, a path or a folder is wrong
├── PluginError              no usable plugin offers a name, or two do
├── DataError                a data set is missing or damaged
├── IdentityError            a key, or a directory of keys, cannot be used
├── LedgerError              a ledger cannot be used
├── RecordError              a run directory is missing or damaged
│   └── RefutedError         a check of a trail or a signature failed
├── PrivacyError             a guarantee cannot be given
├── RunError                 a run had started and failed
│   ├── AttemptsSpentError   no round is complete, and no attempt is left
│   ├── BrokenNetworkError   its network failed
│   └── TooFewSitesError     too few sites replied
├── StoppedError             a run was stopped, and can be resumed
├── MessageError             bytes are not the expected message
└── RefusalError             a site refuses to answer
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from cohortium.text import MAX_CODE_LENGTH, MAX_REASON_LENGTH, escape_control_characters, sanitize


class CohortiumError(Exception):
    """An error that the user can correct.

    It is shown as one sentence, never as a traceback.

    Guarantees:
        Its text has no control character for a terminal, regardless of the author of its words.
        No line but the first begins at the margin.

    Attributes:
        exit_code: Exit status of the command. It is 2 if the request was wrong and nothing has
            started. It is 1 if a run had started and failed, or a check found something wrong. It
            is 130 if the user stopped it.
    """

    exit_code: ClassVar[int] = 2

    def __str__(self) -> str:
        """Return the sentence."""
        return sanitize(super().__str__())


class StudyError(CohortiumError):
    """A study, a site file or a composed part that asks for the impossible."""


class RequestError(CohortiumError):
    """An argument, a path or a folder that a command or a call cannot use.

    The content of a study is never the cause.
    """


class NetworkError(StudyError):
    """A network, perhaps a user's own, that cannot be built or used.

    It cannot be made, or does not match its study.
    """


class PluginError(CohortiumError):
    """A name that no usable plugin offers, or that two plugins offer."""


class DataError(CohortiumError):
    """A data set that is missing, damaged or of an unexpected form."""


class IdentityError(CohortiumError):
    """A site's key or a key directory that is missing, damaged or untrusted."""


class LedgerError(CohortiumError):
    """A hospital's ledger that is missing, damaged, unreadable or unwritable."""


class RecordError(CohortiumError):
    """A run's directory that is missing, damaged, or has no run."""


class RefutedError(RecordError):
    """A record that a check has refuted: it was altered, or signed by somebody else."""

    exit_code = 1


class PrivacyError(CohortiumError):
    """A guarantee that is impossible, or that a part would break.

    The part is one of the composition.
    """


class RunError(CohortiumError):
    """A run that had started and cannot continue."""

    exit_code = 1


class AttemptsSpentError(RunError):
    """A run without a complete round, of which no attempt is left. Nothing can continue it."""


class BrokenNetworkError(RunError):
    """A network, perhaps a user's own, that fails during a run."""


class StoppedError(CohortiumError):
    """A run that the user has stopped, and that can be resumed."""

    exit_code = 130


class TooFewSitesError(RunError):
    """A round with fewer replies than the aggregation needs. Nothing was released."""


class MessageError(CohortiumError):
    """Bytes that are not a message of the expected kind."""

    exit_code = 1


class RefusalCode(StrEnum):
    """Code of a refusal, for programs.

    A plugin may add its own codes. A refusal by a site's policy has the code `policy.KEY`.
    """

    SESSION = "session"
    STALE = "stale"
    BUDGET = "budget"
    MISSING_WEIGHTS = "missing-weights"
    OUT_OF_ORDER = "out-of-order"
    OUT_OF_RANGE = "out-of-range"
    NON_FINITE = "non-finite"
    VECTOR = "vector"
    STATE = "state"
    BUFFERS_CHANGED = "buffers-changed"
    EXAMPLES = "examples"
    PATIENTS = "patients"
    TRAINER = "trainer"
    MALFORMED = "malformed"
    DATA = "data"
    STUDY = "study"
    NETWORK = "network"
    PLUGINS = "plugins"
    TABLES = "tables"
    VERSIONS = "versions"
    DEVICE = "device"
    THREADS = "threads"
    LEDGER = "ledger"
    JOURNAL = "journal"
    DISK = "disk"
    TRAIL = "trail"
    APPROVAL = "approval"
    BUSY = "busy"
    SITE_ERROR = "site-error"
    INTERNAL_ERROR = "internal-error"


class RefusalError(CohortiumError):
    """A site's deliberate refusal to reply, with a code for programs.

    The site state machine turns it into a `Refusal` message. It informs the coordinator, and the
    other sites continue.
    """

    exit_code = 1

    def __init__(self, code: str, reason: str) -> None:
        """Store the code, such as a `RefusalCode`, with the sentence."""
        super().__init__(reason)
        self.code = escape_control_characters(code)[:MAX_CODE_LENGTH]
        self.reason = escape_control_characters(reason)[:MAX_REASON_LENGTH]

    def __reduce__(self) -> tuple[type[RefusalError], tuple[str, str]]:
        """Return the arguments with which another process can raise the error again."""
        return type(self), (self.code, self.reason)
