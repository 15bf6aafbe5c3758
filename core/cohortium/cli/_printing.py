"""The console on which commands print their tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDEST = 1 << 16
"""Columns of an output that is no terminal. Programs read it, so nothing is wrapped or cut."""


def console() -> Console:
    """Return standard output, as wide as its terminal or as its text.

    It takes no text for markup, since names and reasons of other parties may have brackets.
    """
    # Imported here because rich takes longer to import than `--help` takes to print.
    from rich.console import Console

    made = Console(highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = WIDEST
    return made
