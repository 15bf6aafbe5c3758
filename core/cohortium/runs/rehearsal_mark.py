"""The mark of a rehearsal deployment's folder, which holds no run.

`cohortium rehearse` writes the study file next to the sites' folders. A run of the study has its
record elsewhere.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final

from cohortium.errors import RequestError

if TYPE_CHECKING:
    from pathlib import Path

FIRST_SITE: Final = "site-0/site.toml"
"""Site file that every rehearsal deployment has."""


def is_rehearsal(folder: Path) -> bool:
    """Return whether `folder` holds a rehearsal deployment."""
    return (folder / FIRST_SITE).exists()


def start_command(folder: Path) -> str:
    """Return the command that starts the first site of the rehearsal deployment in `folder`."""
    return f"`cohortium site {shlex.quote(str(folder / FIRST_SITE))}`"


def refuse_rehearsal(folder: Path) -> None:
    """Refuse the folder of a rehearsal deployment where that of a run is needed.

    Raises:
        RequestError: `cohortium rehearse` wrote the folder.
    """
    if is_rehearsal(folder):
        raise RequestError(
            f"{folder} holds a rehearsal deployment and no run; start its sites, as with "
            f"{start_command(folder)}, then its study, and give the folder of that run's record."
        )
