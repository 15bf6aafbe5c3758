"""Every error that a user can meet: one sentence with what is wrong, where, and what to do.

CohortiumError
├── StudyError               a study asks for something that cannot be
│   └── NetworkError         a network cannot be made, or does not fit its study
├── RequestError             a command or a call asks for something that cannot be
├── PluginError              no usable plugin offers a name, or two do
├── DataError                a data set is missing or damaged
├── IdentityError            a key, or a directory of keys, cannot be used
├── LedgerError              a ledger cannot be used
├── RecordError              a run directory is missing or damaged
├── PrivacyError             a guarantee cannot be given
├── RunError                 a run had started and failed
│   ├── BrokenNetworkError   its network failed
│   └── TooFewSitesError     too few sites replied
├── StoppedError             a run was stopped, and can be resumed
├── MessageError             bytes are not the expected message
└── RefusalError             a site refuses to answer
"""

from __future__ import annotations

from typing import ClassVar

from cohortium.text import MAX_CODE_LENGTH, MAX_REASON_LENGTH, escape_control_characters, sanitize


class CohortiumError(Exception):
    """Something the user can mend; shown as one sentence, never as a traceback.

    Guarantees:
        Its text holds no character that a terminal obeys, and no line that begins at the margin
        but the first, whoever wrote the words in it.

    Attributes:
        exit_code: What the command returns: 2 where the request was wrong and nothing has
            started, 1 where a run had started and failed, 130 where somebody stopped it.
    """

    exit_code: ClassVar[int] = 2

    def __str__(self) -> str:
        """The sentence."""
        return sanitize(super().__str__())


class StudyError(CohortiumError):
    """A study, or a value composed in Python, asks for something that cannot be."""


class RequestError(CohortiumError):
    """A command or a call asks for something that cannot be: an argument, a path, a folder."""


class NetworkError(StudyError):
    """A network, perhaps a user's own, that cannot be made or does not fit its study."""


class PluginError(CohortiumError):
    """A name that no usable plugin offers, or that two plugins offer."""


class DataError(CohortiumError):
    """A data set that is missing, damaged or not of the expected form."""


class IdentityError(CohortiumError):
    """A site's key, or a directory of keys, that is missing, damaged or not to be trusted."""


class LedgerError(CohortiumError):
    """A hospital's ledger that is missing, damaged, or cannot be read or written."""


class RecordError(CohortiumError):
    """A run's folder that is missing, damaged, or holds no run."""


class PrivacyError(CohortiumError):
    """A guarantee that cannot be given, or that a part of the composition would break."""


class RunError(CohortiumError):
    """A run that had started and cannot go on."""

    exit_code = 1


class BrokenNetworkError(RunError):
    """A network, perhaps a user's own, that fails during a run that had started."""


class StoppedError(CohortiumError):
    """A run that somebody has stopped, and that can go on."""

    exit_code = 130


class TooFewSitesError(RunError):
    """A round in which fewer sites answered than the aggregation needs.  Nothing was released."""


class MessageError(CohortiumError):
    """Bytes that are not a message of the expected kind."""

    exit_code = 1


class RefusalError(CohortiumError):
    """A site's considered refusal to answer, with a code that a program can act on.

    The site state machine turns it into a `Refusal` message: the coordinator is told, the
    other sites go on.
    """

    exit_code = 1

    def __init__(self, code: str, reason: str) -> None:
        """Keep the machine-readable `code` beside the sentence."""
        super().__init__(reason)
        self.code = escape_control_characters(code)[:MAX_CODE_LENGTH]
        self.reason = escape_control_characters(reason)[:MAX_REASON_LENGTH]

    def __reduce__(self) -> tuple[type[RefusalError], tuple[str, str]]:
        """What it is made of again where another process raised it."""
        return type(self), (self.code, self.reason)
