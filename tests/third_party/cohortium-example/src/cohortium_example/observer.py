"""An observer: in how many rounds each site has contributed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from cohortium.plugin import RoundCompleted, RunStarted

if TYPE_CHECKING:
    from cohortium.plugin import Event


@frozen
class Counting:
    """Writes `counts.json` into the run's folder, if there is one."""

    def start_run(self) -> Tally:
        """A tally of one run."""
        return Tally()


@define
class Tally:
    """Counts from the run's beginning, whichever process it began in."""

    folder: Path | None = None
    counts: Counter[int] = field(factory=Counter)

    def __call__(self, event: Event) -> None:
        """Count who has contributed to the rounds that `event` tells of."""
        if isinstance(event, RunStarted):
            self.folder = event.folder
            for earlier in event.history:
                self.counts.update(earlier.contributors)
        if isinstance(event, RoundCompleted):
            self.counts.update(event.contributors)
            if self.folder is not None:
                text = json.dumps(self.counts, indent=2)
                (self.folder / "counts.json").write_text(text + "\n", encoding="utf-8")
