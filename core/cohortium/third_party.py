"""Calls of third-party code, and one sentence about any error of it.

A plugin may raise any error: `SystemExit` and `KeyboardInterrupt`, errors whose text raises
another, text of many lines or with escape sequences for a terminal. A plugin must not suppress a
user's request: Ctrl-C and a request to end pass through.

A network may be a user's own file. Its faults are reported as the user's, with the place to correct
them. They are never reported as those of the plugin that happened to call it.
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
    from collections.abc import Callable, Collection, Iterator
    from types import FrameType

T = TypeVar("T")

MAX_LENGTH = 400
"""Largest number of characters of another party's text."""


def truncated(text: str, most: int = MAX_LENGTH) -> str:
    r"""Return the beginning of `text` on one line, escaped.

    The text may be of any subclass of `str`.

    Examples:
        >>> truncated("even\x1b[2J\nall is well")
        'even\\x1b[2J\\nall is well'
    """
    return escape_control_characters(str.__getitem__(text, slice(most))) + "…" * (
        str.__len__(text) > most
    )


def call_guarded(act: Callable[[], T]) -> T:
    """Return the result of `act`, which calls other parties' code.

    Raises:
        PluginError: The code raised any error at all (see `describe_error` for the sentence).

    Guarantees:
        Only a signal to this process (Ctrl-C, a request to end) passes through.
        The function raises the exception of its handler, also if `act` has caught it.
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
    """Return a line that describes `error`, also if its own text fails."""
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
    """Yield a list of exceptions that signal handlers raise meanwhile.

    These are not faults of the called code.
    """
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
"""Largest number of characters of another party's text that a sentence repeats."""


def describe_fault(error: BaseException) -> str:
    """Return the type, text and place in a user's file of `error`.

    The result is one line without full stop.

    Examples:
        >>> describe_fault(KeyError("width"))
        "KeyError: 'width'"
    """
    name = type(error).__name__
    try:
        lines = [line.strip() for line in str(error).splitlines()]
    except Exception:  # noqa: BLE001 - a user's exception may raise when it is shown
        lines = []
    text = " ".join(filter(None, lines))[:MAX_SHOWN].rstrip(".")
    place = "" if isinstance(error, SyntaxError) else source_location(error)
    return f"{name}: {text}{place}" if text else f"{name}{place}"


def source_location(error: BaseException) -> str:
    """Return the last line of a user's file in the traceback of `error`.

    The form is " (file.py, line 3)".
    """
    own = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if _is_users(frame)
    ]
    return f" ({Path(own[-1][0]).name}, line {own[-1][1]})" if own else ""


def plugin_location(error: BaseException, packages: Collection[str]) -> str:
    """Return the last line of a user's file or of a plugin in the traceback of `error`.

    A user's file comes first, because a plugin may only have called it.  The form is that of
    `source_location`.

    Args:
        error: The error.
        packages: Names of the plugins' top packages.
    """
    own = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] in packages
    ]
    in_plugin = f" ({Path(own[-1][0]).name}, line {own[-1][1]})" if own else ""
    return source_location(error) or in_plugin


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a number was too large for this machine.

    Torch has no error type of its own for that.
    """
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower() if isinstance(error, RuntimeError) else ""
    words = ("allocate memory", "of memory", "calculation overflowed")
    return any(word in text for word in words)


def _is_users(frame: FrameType) -> bool:
    """Return whether the frame runs a user's own file.

    Such a file is neither ours, nor Python's, nor an installed package's.
    """
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    file = frame.f_code.co_filename
    if package == "cohortium" or package.startswith("cohortium_") or not Path(file).is_file():
        return False
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    return not any(Path(file).is_relative_to(sysconfig.get_path(kind)) for kind in kinds)
