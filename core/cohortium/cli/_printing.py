"""Where a command prints its tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDEST = 1 << 16
"""Columns of what is no terminal: nothing is wrapped or cut there, as programs read it."""


def console() -> Console:
    """Standard output, as wide as the terminal it is, or as its text."""
    # Here, since rich takes longer to import than `--help` to print.
    from rich.console import Console

    made = Console(highlight=False)
    if not made.is_terminal:
        made.width = WIDEST
    return made
