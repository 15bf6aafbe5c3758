"""Checks and their failures, each in one sentence with a remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

Check: TypeAlias = Callable[[Any], str | None]
"""Function that takes a role instance and raises `ConformanceError`.

It may return a note for the report.
"""


class ConformanceError(AssertionError):
    """A broken contract: the rule, the observation, and the remedy."""


def ensure(condition: object, sentence: str) -> None:
    """Raise an error unless `condition` is true.

    Raises:
        ConformanceError: `condition` is false.  `sentence` explains the failure.
    """
    __tracebackhide__ = True
    if not condition:
        raise ConformanceError(sentence)
