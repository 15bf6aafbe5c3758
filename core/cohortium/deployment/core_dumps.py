"""Core dumps of a process, which would put its memory on a disk."""

from __future__ import annotations

import sys


def forbid_core_dumps() -> None:
    """Let no crash of this process, or of its children, write its memory to a disk.

    The memory of a site's process has images, updates before their noise, and keys. A service that
    collects dumps (`systemd-coredump`) respects the limit, too. Windows has no such limit.
    """
    if sys.platform == "win32":
        return
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))
