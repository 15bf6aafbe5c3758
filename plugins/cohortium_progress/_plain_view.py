"""The plain view: one line a round, suitable for a log file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define, field

from cohortium.plugin import (
    AttemptFailed,
    RoundCompleted,
    RunStarted,
    SiteFailed,
    SiteScored,
    SitesEvaluated,
    metric_name,
)
from cohortium_progress._run_progress import RunProgress, format_scores

if TYPE_CHECKING:
    from rich.console import Console

    from cohortium.plugin import Event


MAX_STATE = 3
"""Most numbers of a privacy plan's state that a line shows."""


@define
class PlainView:
    """Conversion of a run's events to lines."""

    console: Console
    progress: RunProgress = field(factory=RunProgress)

    def __call__(self, event: Event) -> None:
        """Show `event`."""
        self.progress.take(event)
        for text, style in format_event(event):
            self.line(text, style)
        if isinstance(event, RoundCompleted):
            self.line(self._round(event))

    def line(self, text: str, style: str | None = None) -> None:
        """Write one line."""
        self.console.print(text, style=style, markup=False)

    def _round(self, event: RoundCompleted) -> str:
        progress = self.progress
        parts = [f"{len(event.contributors)} sites"]
        if event.dropped:
            parts.append(f"{len(event.dropped)} dropped")
        if event.scores is not None:
            parts += format_scores(event.scores)
        if event.guarantee_so_far is not None and progress.promise is not None:
            parts.append(f"ε {progress.spent:.2f} of {progress.promise.epsilon:.2f}")
        if event.plan_state:
            parts.append(format_state(event.plan_state))
        if progress.left:
            parts.append(f"{progress.left} left")
        return f"round {progress.done}/{progress.rounds}: {', '.join(parts)}"


def format_state(state: tuple[float, ...]) -> str:
    """Return the state of a privacy plan, such as a clip norm, in a few words."""
    shown = ", ".join(f"{number:.4g}" for number in state[:MAX_STATE])
    return f"plan state {shown}{', …' if len(state) > MAX_STATE else ''}"


def format_event(event: Event) -> list[tuple[str, str | None]]:
    """Return the lines, and their styles, that both views write once."""
    match event:
        case RunStarted():
            promise = event.guarantee or "no privacy guarantee"
            first = f"{event.sites} sites, {event.parameters:,} parameters; {promise}"
            lines = [(first, None), *((warning, "yellow") for warning in event.warnings)]
            done = len(event.history)
            more = f"goes on: {done} of {event.rounds} rounds are done"
            return [*lines, (more, None)] if done else lines
        case SiteFailed():
            return [(f"round {event.round + 1}: site {event.site}: {event.reason}", "yellow")]
        case AttemptFailed():
            return [(f"round {event.round + 1} failed: {event.reason}", "yellow")]
        case SitesEvaluated():
            return [(_evaluation(event), None)]
        case SiteScored():
            count = f"{event.num_scored} of {event.num_sites}"
            return [(f"site {event.site} is compared with its baselines: {count}", None)]
    return []


def _evaluation(event: SitesEvaluated) -> str:
    """Return the line of an evaluation at the sites."""
    main, promise = event.main, event.guarantee_so_far
    score = "hidden by the noise"
    if not main.is_hidden and main.value is not None:
        score = f"{main.value:.1%} (95 %: {main.low:.1%} to {main.high:.1%})"
    spent = "" if promise is None else f", ε {promise.epsilon:.2f} of the test images"
    sites = f"{event.contributors} sites"
    name = metric_name(main.metric)
    return f"evaluated at {sites} after round {event.rounds}: {name} {score}{spent}"
