"""An observer: how many events of each kind a run had."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from cohortium.plugin import RunFailed, RunFinished, RunStarted

if TYPE_CHECKING:
    from cohortium.plugin import Event


@frozen
class Counting:
    """Writes `counts.json` into the run's folder, if there is one."""

    def watch(self) -> Tally:
        """A tally of one run."""
        return Tally()


@define
class Tally:
    """Counts until the run ends."""

    folder: Path | None = None
    counts: Counter[str] = field(factory=Counter)

    def __call__(self, event: Event) -> None:
        """Count `event`."""
        self.counts[type(event).__name__] += 1
        if isinstance(event, RunStarted):
            self.folder = event.folder
        if isinstance(event, RunFinished | RunFailed) and self.folder is not None:
            text = json.dumps(self.counts, indent=2)
            (self.folder / "counts.json").write_text(text + "\n", encoding="utf-8")
