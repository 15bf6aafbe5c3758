"""Shows a run on the terminal: a live bar, or one plain line a round where it is piped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define, field, frozen

from cohortium.plugin import (
    Observer,
    Offer,
    RoundFailed,
    RoundFinished,
    RunFailed,
    RunFinished,
    RunStarted,
    SiteFailed,
    hookimpl,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

    from cohortium.plugin import Event, Guarantee

COHORTIUM_API = 1


@frozen
class Progress:
    """Tells people how a run goes, on standard error."""

    def watch(self) -> ProgressWriter:
        """A writer for one run."""
        from rich.console import Console

        return ProgressWriter(Console(stderr=True, highlight=False, soft_wrap=True))


@define
class ProgressWriter:
    """Turns events into lines, and into a bar where there is a terminal."""

    console: Console
    rounds: int = 0
    bar: Bar | None = None
    _target: Guarantee | None = field(default=None)

    def __call__(self, event: Event) -> None:
        """Show `event`."""
        match event:
            case RunStarted():
                self._start(event)
            case SiteFailed():
                self._line(f"round {event.round + 1}: site {event.site}: {event.reason}", "yellow")
            case RoundFailed():
                self._line(f"round {event.round + 1} failed: {event.reason}", "yellow")
            case RoundFinished():
                self._round(event)
            case RunFinished() | RunFailed():
                self._finish()

    def _start(self, event: RunStarted) -> None:
        self.rounds, self._target = event.rounds, event.guarantee
        promise = event.guarantee or "no privacy guarantee"
        self._line(f"{event.sites} sites, {event.parameters:,} parameters; {promise}")
        for warning in event.warnings:
            self._line(warning, "yellow")
        done = len(event.history)
        if done:
            self._line(f"{done} of {event.rounds} rounds are done; it goes on")
        if self.console.is_terminal:
            self.bar = _bar(self.console)
            self.bar.add_task("round", total=event.rounds, completed=done, status="")
            self.bar.start()

    def _round(self, event: RoundFinished) -> None:
        parts = [f"{len(event.contributors)} sites"]
        if event.dropped:
            parts.append(f"{len(event.dropped)} dropped")
        if event.scores is not None:
            parts += [f"loss {event.scores.loss:.3f}", f"accuracy {event.scores.accuracy:.1%}"]
        if event.spent is not None and self._target is not None:
            parts.append(f"ε {event.spent.epsilon:.2f} of {self._target.epsilon:.2f}")
        if self.bar is None:
            self._line(f"round {event.round + 1}/{self.rounds}: {', '.join(parts)}")
            return
        task = self.bar.task_ids[0]
        self.bar.update(task, completed=event.round + 1, status=" · ".join(parts))

    def _finish(self) -> None:
        if self.bar is not None:
            self.bar.stop()

    def _line(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, markup=False)


def _bar(console: Console) -> Bar:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    return Bar(
        TextColumn("round"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}", markup=False),
        TimeRemainingColumn(),
        console=console,
    )


@hookimpl
def cohortium_observers() -> list[Offer[Observer]]:
    """Offer `progress`."""
    return [Offer("progress", Progress, "A live bar on a terminal, plain lines in a pipe.")]
