"""Limit on the log lines that a stranger can cause.

A span has so many sentences, and the rest are counted.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from attrs import define, field

from cohortium.text import sanitize

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

MAX_SENTENCES = 20
"""Sentences in a span."""

SPAN_SECONDS = 60.0
"""Length of a span in seconds."""

MAX_LENGTH = 4000
"""Characters of a sentence."""


@define(eq=False)
class Throttle:
    """Writer of at most `limit` warnings in a span to a log.

    It counts the others. A warning may quote another party, so its text is escaped.

    Guarantees:
        Over consecutive spans, at most `limit` + 1 sentences per span are written. Each quotes at
        most `MAX_LENGTH` characters.

        After `close`, a summary has counted every sentence that was not written.

    Attributes:
        log: Receives the sentences.
        what: The kind of sentence, for the summary: "refused" in "12 more refused …".
        limit: Sentences in a span.
        span: Length of a span in seconds.
        clock: Returns seconds since any fixed moment.
    """

    log: logging.Logger
    what: str
    limit: int = MAX_SENTENCES
    span: float = SPAN_SECONDS
    clock: Callable[[], float] = time.monotonic
    _begun: float | None = field(default=None, init=False)
    _said: int = field(default=0, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def __call__(self, sentence: str) -> None:
        """Write `sentence`, or count it."""
        with self._lock:
            now = self.clock()
            if self._begun is None or now - self._begun >= self.span:
                self._summarise(now)
                self._begun, self._said = now, 0
            self._said += 1
            if self._said <= self.limit:
                self.log.warning("%s", sanitize(sentence[:MAX_LENGTH]))

    def close(self) -> None:
        """Write the number of sentences held back since the last summary."""
        with self._lock:
            self._summarise(self.clock())
            self._begun = None

    def _summarise(self, now: float) -> None:
        held = self._said - self.limit
        if self._begun is not None and held > 0:
            minutes = max(1, round((now - self._begun) / 60))
            last = "minute" if minutes == 1 else f"{minutes:,} minutes"
            self.log.warning("%s", f"{held:,} more {self.what} in the last {last}.")
        self._said = 0
