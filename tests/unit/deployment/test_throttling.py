"""What others can make a log say is bounded, and what it is spared is counted."""

from __future__ import annotations

import logging
from collections.abc import Callable

from attrs import define
from hypothesis import given
from hypothesis import strategies as st

from cohortium.deployment.log_throttle import MAX_LENGTH, Throttle


@define
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class Sink(logging.Handler):
    """Gives each sentence to a function."""

    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__()
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        self._write(record.getMessage())


def logger(write: Callable[[str], None]) -> logging.Logger:
    log = logging.Logger("test")  # noqa: LOG001 - of one test alone
    log.addHandler(Sink(write))
    return log


@given(
    gaps=st.lists(st.floats(0, 100), max_size=60),
    most=st.integers(1, 5),
)
def test_every_sentence_is_passed_on_or_counted(gaps: list[float], most: int) -> None:
    clock, told = Clock(), list[tuple[float, str]]()
    throttle = Throttle(
        logger(lambda s: told.append((clock.now, s))),
        "refused",
        limit=most,
        span=60.0,
        clock=clock,
    )
    for gap in gaps:
        clock.now += gap
        throttle("no.")
    throttle.close()
    summaries = [int(s.split()[0].replace(",", "")) for _, s in told if s != "no."]
    assert sum(s == "no." for _, s in told) + sum(summaries) == len(gaps)
    # Two spans can meet in any minute, and no more.
    for begin, _ in told:
        assert sum(begin <= at < begin + 60 for at, _ in told) <= 2 * (most + 1)


def test_throttle_summary_states_its_duration() -> None:
    clock, told = Clock(), list[str]()
    throttle = Throttle(logger(told.append), "refused", limit=1, clock=clock)
    for _ in range(3):
        throttle("no.")
    clock.now = 59.0
    throttle("no.")
    clock.now = 600.0
    throttle("again.")
    throttle.close()
    assert told == ["no.", "3 more refused in the last 10 minutes.", "again."]


def test_a_long_sentence_is_cut() -> None:
    told = list[str]()
    Throttle(logger(told.append), "refused")("x" * 10_000_000)
    assert [len(sentence) for sentence in told] == [MAX_LENGTH]


def test_throttled_text_is_escaped_and_no_format() -> None:
    told = list[str]()
    Throttle(logger(told.append), "refused")("%s\x1b[2J\nsite 0 is well")
    assert told == ["%s\\x1b[2J\n  site 0 is well"]
