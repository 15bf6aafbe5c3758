"""Ctrl-C and SIGTERM: a run ends between two attempts, and says how it goes on."""

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
def stop_on_signal(folder: Path) -> Iterator[Callable[[], bool]]:
    """Whether somebody has asked this process to end, while the body drives the run in `folder`.

    The first signal lets the attempt that is under way be finished, since it is paid for; a
    second one, or one that comes before the first round, ends the body where it stands.

    Raises:
        StoppedError: It was ended; the sentence says how the run goes on.
    """
    from cohortium.runs.run_directory import has_checkpoint, resume_command

    asked = threading.Event()

    def note(_number: int, _frame: FrameType | None) -> None:
        if asked.is_set() or not has_checkpoint(folder):
            raise KeyboardInterrupt
        asked.set()
        # Not by way of a buffer, which the signal may have interrupted.
        os.write(2, NOTICE)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield asked.is_set
    except KeyboardInterrupt:
        if has_checkpoint(folder):
            raise StoppedError(
                f"stopped within a round; go on with {resume_command(folder)}."
            ) from None
        raise StoppedError("stopped before the first round; nothing was trained.") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
