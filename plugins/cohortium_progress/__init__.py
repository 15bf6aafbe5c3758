"""Shows a run to people: a live view on a terminal, one plain line a round everywhere else.

It writes to standard error, so that standard output stays the result's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from cohortium.plugin import Observer, Offer, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable

    from cohortium.plugin import Event

COHORTIUM_API = 1


@frozen
class Progress:
    """Tells people how a run goes.

    The live view shows round, sites answering, loss and accuracy, ε spent and the time left.
    Where standard error is no terminal, or one that cannot move its cursor, there is one line for
    each round.
    """

    def start_run(self) -> Callable[[Event], None]:
        """A writer for one run."""
        import sys

        from rich.console import Console

        from cohortium_progress._lines import PlainView
        from cohortium_progress._live import LiveView

        console = Console(stderr=True, highlight=False)
        # Not what FORCE_COLOR makes rich believe: a log file is no terminal.
        if sys.stderr.isatty() and not console.is_dumb_terminal:
            return LiveView(console)
        console.soft_wrap = True
        return PlainView(console)


@hookimpl
def cohortium_observers() -> list[Offer[Observer]]:
    """Offer `progress`."""
    return [Offer("progress", Progress, "A live view on a terminal, plain lines in a pipe.")]
