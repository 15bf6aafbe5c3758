"""Limit of the answers that each client receives, over restarts of the service."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Final

import msgspec
from attrs import define, field

from cohortium.errors import DataError, RunError
from cohortium.storage.atomic import atomic_write

if TYPE_CHECKING:
    from pathlib import Path

FILE: Final = "encrypted_answers.json"
"""Name of the file of counts, in the run's folder."""


@define(eq=False)
class AnswerLimit:
    """Counts of images that clients received an answer for.

    Attributes:
        path: File of the counts, by client.
        most: Largest number of images for each client.

    Guarantees:
        A count is durable before its answer is computed. Another process that serves the same run
        has to use another folder.
    """

    path: Path
    most: int
    _counts: dict[str, int] = field(init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    @_counts.default
    def _read(self) -> dict[str, int]:
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=dict[str, int])
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise RunError(f"cannot read {self.path}: {error.strerror}.") from error
        except msgspec.DecodeError as error:
            raise DataError(
                f"{self.path} is damaged ({error}); restore it, or delete it to count anew."
            ) from error

    def take(self, client: str, images: int) -> bool:
        """Count the images of a query, and return whether the client may have the answer.

        Raises:
            OSError: The count cannot be written, and nothing is counted.
        """
        with self._lock:
            count = self._counts.get(client, 0) + images
            if count > self.most:
                return False
            changed = self._counts | {client: count}
            atomic_write(self.path, json.dumps(changed, indent=2).encode())
            self._counts = changed
            return True
