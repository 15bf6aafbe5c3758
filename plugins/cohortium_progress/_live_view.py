"""The live view: a few lines that stay in place on screen.

It fits narrow terminals as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define, field
from rich import live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cohortium.plugin import RunCompleted, RunFailed, RunStarted
from cohortium_progress._plain_view import format_event, format_state
from cohortium_progress._run_progress import RunProgress, format_scores

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from cohortium.plugin import Event

REFRESHES = 4
"""Redraws of the view a second."""

NARROW = 60
"""Columns below which the bars are left out."""

LABEL = len("privacy")
"""Columns of the longest label."""

BARS = "▁▂▃▄▅▆▇█"
SPARKS = 16
"""Most values of a sparkline."""


@define
class LiveView:
    """View of the run's state, redrawn a few times a second.

    An event itself draws nothing.
    """

    console: Console
    progress: RunProgress = field(factory=RunProgress)
    _view: live.Live | None = None

    def __call__(self, event: Event) -> None:
        """Take `event` into the view."""
        self.progress.take(event)
        for text, style in format_event(event):
            self.console.print(Text(text, style=style or ""))
        match event:
            case RunStarted():
                self._view = live.Live(
                    get_renderable=lambda: view(self.progress, self.console),
                    console=self.console,
                    refresh_per_second=REFRESHES,
                    redirect_stdout=False,
                    redirect_stderr=False,
                )
                self._view.start()
            case RunCompleted() | RunFailed():
                self._stop()

    def _stop(self) -> None:
        """Leave the last state visible, and the cursor below it."""
        if self._view is not None:
            self._view.stop()
            self._view = None


def view(progress: RunProgress, console: Console) -> RenderableType:
    """Return the known state, each row on one line of the console."""
    rows = [_round(progress), _sites(progress)]
    if progress.scores is not None:
        rows.append(_scores(progress, console))
    if progress.promise is not None:
        rows.append(_privacy(progress))
    if progress.plan_state:
        rows.append(("state", None, format_state(progress.plan_state)))
    is_wide = console.width >= NARROW
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True, style="bold", min_width=LABEL)
    if is_wide:
        table.add_column(width=24)
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for label, share, text in rows:
        bar = "" if share is None else ProgressBar(total=1, completed=share, width=24)
        table.add_row(label, *([bar] if is_wide else []), text)
    return table


def _round(progress: RunProgress) -> tuple[str, float | None, str]:
    left = "" if progress.left is None else f", about {progress.left} left"
    if progress.done == progress.rounds:
        left = ""
    number = f"{progress.done} of {progress.rounds}{left}"
    return "rounds", progress.done / max(1, progress.rounds), number


def _sites(progress: RunProgress) -> tuple[str, float | None, str]:
    answered, asked = progress.answered
    parts = [f"{answered} of {asked} answered"]
    if progress.exchange:
        parts.append(f"exchange {progress.exchange + 1}")
    if progress.dropped:
        parts.append(f"{progress.dropped} dropped so far")
    if progress.failed:
        parts.append(f"{progress.failed} tried again")
    return "sites", answered / max(1, asked), ", ".join(parts)


def _scores(progress: RunProgress, console: Console) -> tuple[str, float | None, str]:
    assert progress.scores is not None
    text = ", ".join(reversed(format_scores(progress.scores)))
    if progress.main_scores and console.encoding.startswith("utf"):
        text += f"  {sparkline(progress.main_scores)}"
    return "scores", progress.scores.metrics[progress.scores.main_metric], text


def _privacy(progress: RunProgress) -> tuple[str, float | None, str]:
    assert progress.promise is not None
    whole = progress.promise.epsilon
    text = f"ε {progress.spent:.2f} of {whole:.2f} at δ {progress.promise.delta:.2g}"
    label = ", a simulation" if progress.promise.simulation else ""
    return "privacy", min(1.0, progress.spent / whole) if whole else None, text + label


def sparkline(values: list[float]) -> str:
    """Return the last `SPARKS` values as bars, scaled to their range.

    >>> sparkline([0.0, 0.5, 1.0])
    '▁▄█'
    """
    shown = values[-SPARKS:]
    low, span = min(shown), (max(shown) - min(shown)) or 1.0
    return "".join(BARS[int((value - low) / span * (len(BARS) - 1))] for value in shown)
