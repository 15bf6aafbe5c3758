"""Standard streams that spell characters missing from their encoding, instead of failing."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import sys
import unicodedata
from types import MappingProxyType
from typing import Any

SPELLINGS = MappingProxyType(
    {
        "ε": "eps", "δ": "delta", "σ": "sigma", "α": "alpha", "μ": "mu", "Δ": "Delta", "√": "sqrt",
        "×": "x", "·": "*", "±": "+-", "−": "-", "–": "-", "—": "-", "…": "...", "→": "->",
        "≤": "<=", "≥": ">=", "≈": "~", "‖": "||", "⁻": "^-", "’": "'", "✓": "+", "✗": "x",
        "▁": "_", "▂": "_", "▃": "-", "▄": "-", "▅": "=", "▆": "=", "▇": "#", "█": "#",
    }
)  # fmt: skip
"""Our characters that ASCII lacks. Powers and indices are decomposed. All patterns of dots that
turn during a wait share one spelling."""

SPELLED = "cohortium-spelled"
"""Name of the error handler that uses `SPELLINGS`."""


def spell() -> None:
    """Make standard streams print to any encoding.

    Called once, before a command prints anything.
    """
    codecs.register_error(SPELLED, _spelled)
    sys.stdout, sys.stderr = _spelling(sys.stdout), _spelling(sys.stderr)


def json_text(value: Any, *, allow_nan: bool = True) -> str:
    """Return `value` as JSON for standard output.

    The JSON is readable if the output is UTF-8, and plain ASCII otherwise.
    """
    name = codecs.lookup(getattr(sys.stdout, "encoding", None) or "ascii").name
    is_plain = not name.startswith("utf")
    return json.dumps(value, indent=2, ensure_ascii=is_plain, allow_nan=allow_nan)


def _spelling(stream: Any) -> Any:
    """Return `stream`, changed so that no character fails.

    A stream that is not Python's own is returned unchanged.
    """
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    if codecs.lookup(stream.encoding).name == "ascii":
        is_line_buffered = stream.line_buffering
        return _Ascii(stream.detach(), "latin-1", SPELLED, line_buffering=is_line_buffered)
    with contextlib.suppress(OSError):  # another file replaced it, unknown to Python
        stream.reconfigure(errors=SPELLED)
    return stream


class _Ascii(io.TextIOWrapper):
    """A stream of ASCII.

    Its encoding has another name, because click takes "ascii" for a mistake and writes UTF-8.
    """

    def write(self, text: str, /) -> int:
        """Write `text`, spelled."""
        super().write(text.encode("ascii", SPELLED).decode("ascii"))
        return len(text)


def _spelled(error: UnicodeError) -> tuple[str | bytes, int]:
    """Return a replacement for characters that cannot be encoded.

    It is a spelling if there is one, and otherwise the characters' numbers.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(map(_spelling_of, missing)), error.end


def _spelling_of(character: str) -> str:
    known = "." if "\u2800" <= character <= "\u28ff" else SPELLINGS.get(character)
    if known is not None:
        return known
    if unicodedata.decomposition(character).startswith(("<super>", "<sub>")):
        mark = "^" if "<super>" in unicodedata.decomposition(character) else "_"
        plain = unicodedata.normalize("NFKC", character)
        if plain.isascii():
            return f"{mark}{plain}"
    return character.encode("ascii", "backslashreplace").decode("ascii")
