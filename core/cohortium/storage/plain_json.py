"""JSON of files whose author is not trusted."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_WHOLE_NUMBER: Final = (1 << 63) - 1
"""Largest whole number, and its negative the smallest."""

_MANY_DIGITS: Final = re.compile(rb"[0-9]{19}")

_Read = TypeVar("_Read")


def decode_json(
    data: bytes, kind: type[_Read], dec_hook: Callable[[type, Any], Any] | None = None
) -> _Read:
    """Return the value that `data` describes, of the type `kind`.

    Guarantees:
        Every whole number is at most `MAX_WHOLE_NUMBER` in size. So arithmetic with it overflows in
        no `float`, and Python can write it as a text.

    Args:
        data: JSON.
        kind: The type.
        dec_hook: As for `msgspec.json.decode`.

    Raises:
        ValueError: The data have another type, no valid JSON, or a number that is too large. The
            errors of msgspec are such errors.
        RecursionError: The data are nested too deeply.
    """
    if _MANY_DIGITS.search(data):
        _require_small(msgspec.json.decode(data))
    return msgspec.json.decode(data, type=kind, dec_hook=dec_hook)


def _require_small(value: Any) -> None:
    if isinstance(value, int):
        if abs(value) > MAX_WHOLE_NUMBER:
            raise ValueError("a whole number has too many digits")
    elif isinstance(value, dict):
        for each in value.values():
            _require_small(each)
    elif isinstance(value, list):
        for each in value:
            _require_small(each)
