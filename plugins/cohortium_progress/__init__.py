"""A run shown to people, in a live view or in lines.

The live view appears on a terminal.  Everywhere else there is one plain line a round.  Both go to
standard error, so that standard output holds only the result.
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
    """Display of a run's progress for people.

    The live view shows round, sites answering, loss and accuracy, ε spent and the time left.  If
    standard error is not a terminal, or cannot move its cursor, there is one line for each round.
    """

    def start_run(self) -> Callable[[Event], None]:
        """Return a writer for one run."""
        import sys

        from rich.console import Console

        from cohortium_progress._live_view import LiveView
        from cohortium_progress._plain_view import PlainView

        console = Console(stderr=True, highlight=False)
        # Rich believes FORCE_COLOR, but a log file is not a terminal.
        if sys.stderr.isatty() and not console.is_dumb_terminal:
            return LiveView(console)
        console.soft_wrap = True
        return PlainView(console)


@hookimpl
def cohortium_observers() -> list[Offer[Observer]]:
    """Offer `progress`."""
    return [Offer("progress", Progress, "A live view on a terminal, plain lines in a pipe.")]
