"""Ctrl-C and SIGTERM, which end a run between two attempts."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING

from cohortium.errors import StoppedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)

NOTICE = b"cohortium: stopping after this round; once more to stop at once.\n"


@contextlib.contextmanager
def stop_on_signal(folder: Path, *, is_search: bool = False) -> Iterator[Callable[[], bool]]:
    """Yield a check for a stop request.

    The body drives the run in `folder`. After the first signal, the attempt in progress is
    completed, because it is already paid for. A second signal ends the body at once. So does a
    signal before the first round.

    Args:
        folder: Folder of the run, or of a search.
        is_search: Whether it is that of a search, whose command continues it.

    Raises:
        StoppedError: A signal ended the run. The sentence says how to resume it.
    """
    from cohortium.runs.resume_command import resume_command
    from cohortium.runs.run_directory import has_checkpoint

    asked = threading.Event()

    def has_begun() -> bool:
        """Return whether a round may have begun."""
        if not is_search:
            return has_checkpoint(folder)
        return folder.is_dir() and any(map(has_checkpoint, folder.iterdir()))

    def note(_number: int, _frame: FrameType | None) -> None:
        if asked.is_set() or not has_begun():
            raise KeyboardInterrupt
        asked.set()
        # Written without a buffer, because the signal may have interrupted the buffer.
        os.write(2, NOTICE)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield asked.is_set
    except KeyboardInterrupt:
        if has_begun():
            how = "the same command" if is_search else resume_command(folder)
            raise StoppedError(f"stopped within a round; continue with {how}.") from None
        raise StoppedError("stopped before the first round; nothing was trained.") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
