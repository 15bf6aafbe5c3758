"""Files with a secret, which their owner alone may read.

The file's mode is the secret's only protection. So one rule holds for every such file: a site's or
a coordinator's signing key, the key of patients' numbers, and the keys of TLS.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from cohortium.storage.bounded_read import read_bounded

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cohortium.errors import CohortiumError

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def read_secret(
    path: Path, limit: int, refusal: Callable[[str], CohortiumError], *, what: str, remedy: str = ""
) -> bytes:
    """Return the content of a secret file, as `read_bounded` does.

    Raises:
        CohortiumError: The file cannot be read, has more than `limit` bytes, or others may read it.
            The error is a `refusal`.
    """
    data = read_bounded(path, limit, refusal, what=what, remedy=remedy)
    require_private(path, refusal, what=what)
    return data


def require_private(path: Path, refusal: Callable[[str], CohortiumError], *, what: str) -> None:
    """Refuse a secret file that others than its owner may read.

    A file of root may admit its group to read it. So do systems that keep the keys of TLS for the
    services of one group. Windows has no such modes, and nothing is checked there.

    Args:
        path: The file.
        refusal: Type of the error, which is made from a sentence.
        what: Name of the file in the sentence, before its path.

    Raises:
        CohortiumError: Others may read or change the file. The error is a `refusal`.
    """
    if os.name != "posix":
        return
    try:
        status = path.stat()
    except OSError as error:
        raise refusal(f"cannot read {what} {path}: {error.strerror}.") from error
    if stat.S_ISDIR(status.st_mode):
        raise refusal(f"cannot read {what} {path}: it is a folder; give a file.")
    is_for_service = status.st_uid == 0 and os.geteuid() != 0
    if status.st_mode & (_OTHERS & ~stat.S_IRGRP if is_for_service else _OTHERS):
        raise refusal(f"others may read {what} {path}; make its mode 0600.")
