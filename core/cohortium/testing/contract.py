"""What a check is, and how it fails: in one sentence that an author can act on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

Check: TypeAlias = Callable[[Any], str | None]
"""Takes a role instance, raises `ConformanceError`, and may return a note worth telling."""


class ConformanceError(AssertionError):
    """A broken contract: which one, how it was seen, and what to do."""


def ensure(condition: object, sentence: str) -> None:
    """Go on if `condition` holds.

    Raises:
        ConformanceError: It does not; `sentence` says what that means.
    """
    __tracebackhide__ = True
    if not condition:
        raise ConformanceError(sentence)
