"""Errors and messages of libraries that read files, as one sentence."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cohortium.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def replace_library_errors(path: Path, fault: str, *, logger: str) -> Iterator[None]:
    """Raise one sentence for any error of a library in the block, and let it print nothing.

    A library raises errors of many types about damaged files, and its texts repeat values of the
    file. So the sentence has the type alone, and the original error is left out. Warnings and the
    logger are those of the whole process, so the block must not run in several threads.

    Args:
        path: The file that is read.
        fault: Continuation of the sentence after the path, as in " cannot be read as NIfTI".
        logger: Name of the library's logger, which is silent in the block.

    Raises:
        DataError: The block raised an error. A `DataError` of the block stays as it is.
    """
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - see above
        raise DataError(
            f"{path}{fault} ({type(error).__name__}); copy the file anew, or leave it out."
        ) from None
    finally:
        log.setLevel(level)
