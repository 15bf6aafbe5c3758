"""Text of other parties in ours: quoted, cut, and without control characters.

Text from a study, a file or another party may have escape sequences, line breaks and letters that
reverse a line. The function `truncate` quotes another party's value within a sentence. The function
`escape_control_characters` makes another party's whole text one line. An error's own text always
passes through `sanitize`.

In a page of Markdown, another party's text passes through `escape_markdown` or `markdown_code`.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from typing import TYPE_CHECKING

from cohortium.renamed import KEYS, VALUES

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_SHOWN = 80
"""Largest number of characters of a value that an error repeats."""

MAX_CODE_LENGTH = 64
"""Largest number of characters of a refusal's code in a message."""

MAX_REASON_LENGTH = 1000
"""Largest number of characters of a refusal's reason."""


def is_printable(text: str) -> bool:
    """Return whether every character of `text` is visible, on one line and in the text's order."""
    # Spaces of other widths are harmless, and belong to names in several languages.
    return all(c.isprintable() or unicodedata.category(c) == "Zs" for c in text)


def escape_control_characters(text: str) -> str:
    r"""Return `text` on one line, with an escape for every invisible character.

    Examples:
        >>> escape_control_characters("Net\x1b[2J\nall is well")
        'Net\\x1b[2J\\nall is well'
    """
    if is_printable(text):
        return text
    return "".join(c if is_printable(c) else ascii(c)[1:-1] for c in text)


def sanitize(text: str) -> str:
    r"""Return `text` for a terminal, a log or a page.

    It keeps its own lines, and has no other control character. Every line but the first is
    indented, so that none can be taken for a message of its own.
    """
    first, *others = (escape_control_characters(line) for line in text.split("\n"))
    return "\n".join([first, *(o if o.startswith(" ") or not o else f"  {o}" for o in others)])


def escape_markdown(text: str) -> str:
    r"""Return `text` on one line, which Markdown shows as it is, also in a table.

    Examples:
        >>> escape_markdown("a|b `c` <i>")
        'a\\|b \\`c\\` &lt;i>'
    """
    shown = "".join(c if is_printable(c) else " " for c in text)
    # An underscore within a word is only that.
    shown = re.sub(r"[\\`*\[\]|~$]|(?<!\w)_+|_+(?!\w)", _after_backslashes, shown)
    shown = shown.replace("&", "&amp;").replace("<", "&lt;")
    # These begin a heading, a list or a quotation.
    return f"\\{shown}" if shown.startswith(("#", ">", "-", "+", "=")) else shown


def _after_backslashes(found: re.Match[str]) -> str:
    return "".join(f"\\{letter}" for letter in found[0])


def markdown_code(text: str) -> str:
    r"""Return `text` on one line as code in Markdown, which shows it as it is.

    Examples:
        >>> markdown_code("cnn")
        '`cnn`'
        >>> markdown_code("a`b")
        '`` a`b ``'
    """
    shown = "".join(c if is_printable(c) else " " for c in text).strip() or "?"
    if "`" not in shown:
        return f"`{shown}`"
    fence = "`" * (1 + max(map(len, re.findall("`+", shown))))
    return f"{fence} {shown} {fence}"


def truncate(value: object) -> str:
    r"""Return the beginning of `value`, quoted within a sentence.

    The value may be of any kind and length.

    Examples:
        >>> truncate("cnn\ndata, keys, ledger and policy are in order")
        "'cnn\\ndata, keys, ledger and policy are in order'"
    """
    try:
        text = repr(value[:MAX_SHOWN] if isinstance(value, str) else value)
    except Exception:  # noqa: BLE001 - a number of 5,000 digits, or a user's own class
        return f"a value of type {type(value).__name__}"
    is_cut = isinstance(value, str) and len(value) > MAX_SHOWN
    if not isinstance(value, str) and len(text) > MAX_SHOWN:
        text, is_cut = text[:MAX_SHOWN], True
    return escape_control_characters(text) + "…" * is_cut


def elide_middle(sentence: str) -> str:
    """Return `sentence` without its middle, which may be a list of thousands."""
    if len(sentence) <= MAX_REASON_LENGTH // 2:
        return sentence
    half = MAX_REASON_LENGTH // 4
    return f"{sentence[:half]} … {sentence[-half:]}"


def quote_key(key: str) -> str:
    """Return `key` as an error names it.

    A plain word is unchanged. Other keys pass through `truncate`.
    """
    return key if re.fullmatch(r"[\w.-]{1,80}", key) else truncate(key)


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """Return a replacement for an unknown `key`, one of `known`, as a sentence's end."""
    known = sorted(known)
    new = next((name for name in KEYS.get(key, ()) if name in known), None)
    if new is not None:
        values = f"; {VALUES[new]}" if new in VALUES else ""
        return f"it is called {new} now{values}."
    close = difflib.get_close_matches(key[:MAX_SHOWN], known, n=2, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"there are {', '.join(known)}." if known else "it has none."
