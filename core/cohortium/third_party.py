"""Calls of third-party code, and one sentence about whatever it raises.

A plugin may raise anything: `SystemExit` and `KeyboardInterrupt`, errors whose text raises another,
text of many lines or with escape sequences for a terminal.  What a person asks for is not
a plugin's to swallow: Ctrl-C and a request to end pass through.

A network may be a user's own file.  Its faults are told as the user's, with the place where they
are to be mended, and never as those of the plugin that happened to call it.
"""

from __future__ import annotations

import contextlib
import signal
import sysconfig
import threading
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cohortium.errors import CohortiumError, PluginError
from cohortium.text import escape_control_characters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

T = TypeVar("T")

MAX_LENGTH = 400
"""Characters of a text of others."""


def truncated(text: str, most: int = MAX_LENGTH) -> str:
    r"""Return the beginning of `text` on one line, escaped; of a `str` by any class.

    Examples:
        >>> truncated("even\x1b[2J\nall is well")
        'even\\x1b[2J\\nall is well'
    """
    return escape_control_characters(str.__getitem__(text, slice(most))) + "…" * (
        str.__len__(text) > most
    )


def call_guarded(act: Callable[[], T]) -> T:
    """The result of `act`, which calls code of others.

    Raises:
        PluginError: It raised anything at all; see `describe_error` for the sentence.

    Guarantees:
        Only a signal that this process was sent (Ctrl-C, a request to end) goes on as what its
        handler raised, also where `act` has caught it.
    """
    with _signals() as stopped:
        try:
            result = act()
        except BaseException as error:
            sentence = describe_error(error)
            if stopped:
                raise stopped[0] from None
            raise PluginError(sentence) from error
    if stopped:
        raise stopped[0]
    return result


def describe_error(error: BaseException) -> str:
    """What `error` is, in one line, also where it cannot say so itself."""
    try:
        text = truncated(str(error))
    except BaseException:  # noqa: BLE001 - its own code
        text = "an error whose text cannot be had"
    if isinstance(error, CohortiumError):
        return text
    kind = type.__dict__["__name__"].__get__(type(error))
    return truncated(f"{kind}: {text}")


@contextlib.contextmanager
def _signals() -> Iterator[list[BaseException]]:
    """What handlers of signals raise meanwhile: these are no faults of whoever is called."""
    stopped: list[BaseException] = []
    # Handlers run in the main thread, and may be set there alone.
    is_main = threading.current_thread() is threading.main_thread()
    placed: dict[signal.Signals, tuple[Any, Any]] = {}
    for number in (signal.SIGINT, signal.SIGTERM) if is_main else ():
        handler = signal.getsignal(number)
        if callable(handler):
            noting = partial(_record_signal, stopped, handler)
            placed[number] = (handler, noting)
            signal.signal(number, noting)
    try:
        yield stopped
    finally:
        for number, (handler, noting) in placed.items():
            if signal.getsignal(number) is noting:
                signal.signal(number, handler)


def _record_signal(
    stopped: list[BaseException], handler: Callable[[int, Any], Any], number: int, frame: Any
) -> None:
    try:
        handler(number, frame)
    except BaseException as stop:
        stopped.append(stop)
        raise


MAX_SHOWN = 300
"""Characters of another's text that a sentence repeats."""


def describe_fault(error: BaseException) -> str:
    """What `error` is, says, and where in a user's file it was raised; one line, no full stop.

    Examples:
        >>> describe_fault(KeyError("width"))
        "KeyError: 'width'"
    """
    name = type(error).__name__
    try:
        lines = [line.strip() for line in str(error).splitlines()]
    except Exception:  # noqa: BLE001 - a user's exception may raise where it is shown
        lines = []
    text = " ".join(filter(None, lines))[:MAX_SHOWN].rstrip(".")
    place = "" if isinstance(error, SyntaxError) else source_location(error)
    return f"{name}: {text}{place}" if text else f"{name}{place}"


def source_location(error: BaseException) -> str:
    """The last line of a user's own file that `error` came through, as " (file.py, line 3)"."""
    own = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if _is_users(frame)
    ]
    return f" ({Path(own[-1][0]).name}, line {own[-1][1]})" if own else ""


def is_out_of_memory(error: BaseException) -> bool:
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
