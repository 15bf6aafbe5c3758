"""A folder of files that appears whole, or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cohortium.storage.atomic import atomic_write, make_durable

if TYPE_CHECKING:
    from collections.abc import Mapping

UNFINISHED_FOLDER: Final = ".cohortium-new"
"""Suffix of a folder that is being written, and of no other."""


def atomic_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a new folder of files that only its owner can read.

    Args:
        path: The folder. The folder that will hold it is created if necessary.
        files: Content of each file, by its path in the folder.

    Guarantees:
        A reader, or a crash, sees no folder or a whole one.
        After the function has returned, the folder survives a power cut.
        It has mode 0700, and its files have mode 0600.

    Raises:
        FileExistsError: Something is at `path`, which is unchanged.
        OSError: The folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    made = tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED_FOLDER)
    temporary = Path(made)
    try:
        for name, data in files.items():
            target = temporary / name
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            atomic_write(target, data)
        make_durable(temporary)
        if path.exists() or path.is_symlink():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        temporary.rename(path)
        make_durable(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
