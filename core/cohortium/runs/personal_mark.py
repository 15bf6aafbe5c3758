"""The mark of a folder whose model must not leave its hospital."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cohortium.errors import RequestError

if TYPE_CHECKING:
    from pathlib import Path

PERSONAL: Final = "personal.json"
"""The file that marks the folder of an adapted model."""


def is_personal(folder: Path) -> bool:
    """Return whether `folder` is marked as that of an adapted model."""
    return (folder / PERSONAL).exists()


def refuse_personal(folder: Path, *, purpose: str) -> None:
    """Refuse an adapted model where its weights would leave the hospital.

    Args:
        folder: Folder of a model.
        purpose: The use, after "it cannot be".

    Raises:
        RequestError: The folder is marked.
    """
    if is_personal(folder):
        raise RequestError(
            f"{folder} holds a personal model, which must not leave its hospital; it cannot be "
            f"{purpose}."
        )
