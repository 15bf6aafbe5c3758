"""Files with one wrong byte, as a bad disk or a bad copy leaves them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def flipped(content: bytes, *, every: int = 1) -> Iterator[bytes]:
    """Yield `content` once for every `every`-th byte, with the bits of that byte inverted."""
    for place in range(0, len(content), every):
        wrong = bytearray(content)
        wrong[place] ^= 0xFF
        yield bytes(wrong)


def refusals(
    path: Path, read: Callable[[], object], error: type[Exception], *, every: int = 1
) -> list[str]:
    """Return the sentences in which `read` refuses the file `path` with one wrong byte.

    A wrong byte may change nothing that is read. An exception of another type passes through.
    """
    found = []
    for content in flipped(path.read_bytes(), every=every):
        path.write_bytes(content)
        try:
            read()
        except error as refusal:
            found.append(str(refusal))
    return found
