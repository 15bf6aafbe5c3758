"""What a terminal, a pipe or a file takes: text that its encoding lacks is spelled, no error."""

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
"""Characters of ours that ASCII has no sign for.  Powers and indices are taken apart, and the
patterns of dots that turn while one waits are one."""

SPELLED = "cohortium-spelled"
"""The name of the error handler that uses them."""


def spell() -> None:
    """From now on print to any encoding; called once, before a command says anything."""
    codecs.register_error(SPELLED, _spelled)
    sys.stdout, sys.stderr = _spelling(sys.stdout), _spelling(sys.stderr)


def json_text(value: Any, *, allow_nan: bool = True) -> str:
    """`value` for standard output: readable where that is UTF-8, and JSON wherever it is not."""
    name = codecs.lookup(getattr(sys.stdout, "encoding", None) or "ascii").name
    is_plain = not name.startswith("utf")
    return json.dumps(value, indent=2, ensure_ascii=is_plain, allow_nan=allow_nan)


def _spelling(stream: Any) -> Any:
    """`stream`, in which no character fails; one that is not Python's own is left as it is."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    if codecs.lookup(stream.encoding).name == "ascii":
        is_line_buffered = stream.line_buffering
        return _Ascii(stream.detach(), "latin-1", SPELLED, line_buffering=is_line_buffered)
    with contextlib.suppress(OSError):  # it was replaced by another file, unknown to Python
        stream.reconfigure(errors=SPELLED)
    return stream


class _Ascii(io.TextIOWrapper):
    """A stream of ASCII.  Under that name click would take it for a mistake, and write UTF-8."""

    def write(self, text: str, /) -> int:
        """Write `text`, spelled."""
        super().write(text.encode("ascii", SPELLED).decode("ascii"))
        return len(text)


def _spelled(error: UnicodeError) -> tuple[str | bytes, int]:
    """What stands for characters that cannot be encoded: a spelling, or else their numbers."""
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
