"""The file that names the key which is to sign a result.

Guarantees:
    Work that began with a key continues with this key alone, so no result is without its signature
    by an oversight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cohortium.errors import RequestError, RunError
from cohortium.storage.atomic import atomic_write
from cohortium.storage.bounded_read import read_if_present
from cohortium.text import truncate

if TYPE_CHECKING:
    from pathlib import Path

    from cohortium.crypto.signing import SigningKey

SIGNER: Final = "checkpoint/signer"
"""Public key that is to sign the result, in a run's folder. Runs without one have no such file."""

_MAX_BYTES = 1000


def name_signer(path: Path, key: SigningKey | None) -> None:
    """Store in `path` which key is to sign. Without a key there is no such file.

    Raises:
        RunError: The file cannot be written.
    """
    try:
        if key is None:
            path.unlink(missing_ok=True)  # of a process killed at its start
        else:
            atomic_write(path, key.public.hex().encode() + b"\n")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}.") from error


def require_signer(path: Path, key: SigningKey | None, *, result: Path) -> None:
    """Refuse to continue without the key that `path` names, and name a key that is new.

    Args:
        path: The file.
        key: The key that is given, or None.
        result: Folder of the result to sign.

    Raises:
        RequestError: The file names another key.
        RunError: The file cannot be read or written.
    """
    named = (read_if_present(path, _MAX_BYTES, RunError) or b"").decode("ascii", "replace").strip()
    given = "" if key is None else key.public.hex()
    if named and given != named:
        raise RequestError(
            f"the result of {result} is to be signed with the key that begins with "
            f"{truncate(named[:16])}; "
            f"give it with --sign-with, or remove {path} and sign later with `cohortium sign`."
        )
    if given and not named:
        name_signer(path, key)
