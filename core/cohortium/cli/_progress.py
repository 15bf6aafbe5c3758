"""Progress of a long command, on a terminal or in a log."""

from __future__ import annotations

import contextlib
import datetime as dt
import time
from typing import TYPE_CHECKING, Final

import typer
from attrs import define, field

from cohortium.text import sanitize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECONDS_BETWEEN_LINES: Final = 10.0
"""Shortest time between two lines about one part in a log."""

MIN_SHARE: Final = 0.01
"""Smallest share from which the time left is estimated."""


@define
class Progress:
    """Words about the share of a command that is done.

    Attributes:
        name: The command.
        show: Shows a text in place of the one before.
        seconds_between: Shortest time between two texts about one part.
        now: The clock, in seconds.
    """

    name: str
    show: Callable[[str], None]
    seconds_between: float = 0.0
    now: Callable[[], float] = time.monotonic
    _part: str = field(init=False, default="")
    _began: float = field(init=False, default=0.0)
    _shown: float = field(init=False, default=0.0)

    def tell(self, part: str, share: float) -> None:
        """Take the share of a part that is done, and show it if it is time.

        Args:
            part: Name of the part. A new name is always shown.
            share: Share from 0 to 1.
        """
        now = self.now()
        is_new = part != self._part
        if is_new:
            self._part, self._began = part, now
        elif now - self._shown < self.seconds_between:
            return
        self._shown = now
        left = ""
        if MIN_SHARE <= share < 1:
            seconds = round((now - self._began) * (1 - share) / share)
            left = f", about {dt.timedelta(seconds=seconds)} left"
        self.show(sanitize(f"{self.name}: {part}, {share:.0%}{left}"))


@contextlib.contextmanager
def show_progress(name: str) -> Iterator[Callable[[str, float], None]]:
    """Yield a function that takes the name of a part and the share of it that is done.

    A terminal shows one line, which changes. A pipe or a log gets a line at the beginning of each
    part, and then one every few seconds.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        lines = Progress(name, lambda text: typer.echo(text, err=True), SECONDS_BETWEEN_LINES)
        yield lines.tell
        return
    with console.status(name) as status:
        yield Progress(name, status.update).tell
