"""Every error that a user can meet, each one sentence: what was wrong, where, and what to do."""

from __future__ import annotations

from typing import ClassVar


class CohortiumError(Exception):
    """Something the user can mend; shown as one sentence, never as a traceback.

    Attributes:
        exit_code: What the command returns: 2 where the request was wrong and nothing has
            started, 1 where a run had started and failed, 130 where somebody stopped it.
    """

    exit_code: ClassVar[int] = 2


class StudyError(CohortiumError):
    """A study, or a value composed in Python, asks for something that cannot be."""


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
        self.code = code
        self.reason = reason

    def __reduce__(self) -> tuple[type[RefusalError], tuple[str, str]]:
        """What it is made of again where another process raised it."""
        return type(self), (self.code, self.reason)
