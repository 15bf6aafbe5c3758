"""Values of a search as JSON, which has no infinity."""

from __future__ import annotations

import math
from typing import Any

import msgspec


def as_plain(content: object) -> Any:
    """Return plain values, with text in place of infinity, which JSON has not."""
    return _finite(msgspec.to_builtins(content))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return "infinity" if isinstance(value, float) and math.isinf(value) else value


def with_infinity(value: Any) -> Any:
    """Return values that `as_plain` made plain, with infinity again."""
    if isinstance(value, dict):
        return {key: with_infinity(each) for key, each in value.items()}
    if isinstance(value, list):
        return [with_infinity(each) for each in value]
    return math.inf if value == "infinity" else value
