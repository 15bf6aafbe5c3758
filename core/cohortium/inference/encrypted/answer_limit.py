"""Limit of the answers that each client receives, over all services of a run."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

import msgspec
from attrs import define, field

from cohortium.errors import DataError
from cohortium.storage.atomic import atomic_write
from cohortium.storage.bounded_read import read_if_present
from cohortium.storage.file_lock import locked

if TYPE_CHECKING:
    from pathlib import Path

FILE: Final = "encrypted_answers.json"
"""Name of the file of counts, in the run's folder."""

MAX_BYTES: Final = 1 << 26
"""Largest size of that file."""

_REMEDY: Final = "restore it, or delete it to count anew"


@define(eq=False)
class AnswerLimit:
    """Counts of images that clients received an answer for.

    Attributes:
        path: File of the counts, by client. A file next to it is its lock.
        most: Largest number of images for each client.

    Guarantees:
        A count is durable before its answer is computed.
        On POSIX, several services of a run may share the file, and with it the limit.

    Raises:
        DataError: The file cannot be read, or is damaged.
    """

    path: Path
    most: int
    _turn: threading.Lock = field(factory=threading.Lock, init=False)

    def __attrs_post_init__(self) -> None:
        """Refuse a file that cannot be used before the service starts."""
        self._counts()

    def take(self, client: str, images: int) -> bool:
        """Count the images of a query, and return whether the client may have the answer.

        Raises:
            OSError: The count cannot be written, and nothing is counted.
            DataError: The file cannot be read or is damaged, and nothing is counted.
        """
        # Each write replaces the file of the counts, so it cannot be the lock itself.
        with self._turn, locked(self.path.with_suffix(".lock")):
            counts = self._counts()
            count = counts.get(client, 0) + images
            if count > self.most:
                return False
            changed = msgspec.json.encode(counts | {client: count})
            atomic_write(self.path, msgspec.json.format(changed))
            return True

    def _counts(self) -> dict[str, int]:
        data = read_if_present(self.path, MAX_BYTES, DataError, remedy=_REMEDY)
        if data is None:
            return {}
        try:
            return msgspec.json.decode(data, type=dict[str, int])
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            raise DataError(f"{self.path} is damaged ({error}); {_REMEDY}.") from error
