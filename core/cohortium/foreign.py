"""Code of others, called so that nothing it does reaches further than one sentence about it.

A plugin may raise anything: `SystemExit` and `KeyboardInterrupt`, errors whose text raises another,
text of many lines or with escape sequences for a terminal.  What a person asks for is not
a plugin's to swallow: Ctrl-C and a request to end pass through.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from cohortium.errors import CohortiumError, PluginError, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

LONGEST = 400
"""Characters of a text of others."""


def brief(text: str, most: int = LONGEST) -> str:
    r"""The beginning of `text` on one line, as `printable` shows it; of a `str` by any class.

    Examples:
        >>> brief("even\x1b[2J\nall is well")
        'even\\x1b[2J\\nall is well'
    """
    return printable(str.__getitem__(text, slice(most))) + "…" * (str.__len__(text) > most)


def attempt(act: Callable[[], T]) -> T:
    """The result of `act`, which calls code of others.

    Raises:
        PluginError: It raised anything at all; the sentence is `told_of` it.

    Guarantees:
        Only a signal that this process was sent (Ctrl-C, a request to end) goes on as what its
        handler raised, also where `act` has caught it.
    """
    with _signals() as stopped:
        try:
            result = act()
        except BaseException as error:
            sentence = told_of(error)
            if stopped:
                raise stopped[0] from None
            raise PluginError(sentence) from error
    if stopped:
        raise stopped[0]
    return result


def told_of(error: BaseException) -> str:
    """What `error` is, in one line, also where it cannot say so itself."""
    try:
        text = brief(str(error))
    except BaseException:  # noqa: BLE001 - its own code
        text = "an error whose text cannot be had"
    if isinstance(error, CohortiumError):
        return text
    kind = type.__dict__["__name__"].__get__(type(error))
    return brief(f"{kind}: {text}")


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
            noting = partial(_noting, stopped, handler)
            placed[number] = (handler, noting)
            signal.signal(number, noting)
    try:
        yield stopped
    finally:
        for number, (handler, noting) in placed.items():
            if signal.getsignal(number) is noting:
                signal.signal(number, handler)


def _noting(
    stopped: list[BaseException], handler: Callable[[int, Any], Any], number: int, frame: Any
) -> None:
    try:
        handler(number, frame)
    except BaseException as stop:
        stopped.append(stop)
        raise
