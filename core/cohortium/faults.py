"""What code that is not ours has raised, as the end of a sentence: what it was, and in which line.

A network may be a user's own file.  Its faults are told as the user's, with the place where they
are to be mended, and never as those of the plugin that happened to call it.
"""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

MOST_SHOWN = 300
"""Characters of another's text that a sentence repeats."""


def fault_text(error: BaseException) -> str:
    """What `error` is, says, and where in a user's file it was raised; one line, no full stop.

    Examples:
        >>> fault_text(KeyError("width"))
        "KeyError: 'width'"
    """
    name = type(error).__name__
    try:
        lines = [line.strip() for line in str(error).splitlines()]
    except Exception:  # noqa: BLE001 - a user's exception may raise where it is shown
        lines = []
    text = " ".join(filter(None, lines))[:MOST_SHOWN].rstrip(".")
    place = "" if isinstance(error, SyntaxError) else place_of(error)
    return f"{name}: {text}{place}" if text else f"{name}{place}"


def place_of(error: BaseException) -> str:
    """The last line of a user's own file that `error` came through, as " (file.py, line 3)"."""
    own = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if _is_users(frame)
    ]
    return f" ({Path(own[-1][0]).name}, line {own[-1][1]})" if own else ""


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether a number was too large for this machine: torch has no error of its own for that."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower() if isinstance(error, RuntimeError) else ""
    words = ("allocate memory", "of memory", "calculation overflowed")
    return any(word in text for word in words)


def _is_users(frame: FrameType) -> bool:
    """Whether it runs a file that is neither ours, nor Python's, nor an installed package's."""
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    file = frame.f_code.co_filename
    if package == "cohortium" or package.startswith("cohortium_") or not Path(file).is_file():
        return False
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    return not any(Path(file).is_relative_to(sysconfig.get_path(kind)) for kind in kinds)
