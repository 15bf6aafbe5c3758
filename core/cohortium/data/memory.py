"""Memory available to this process: the machine's, or its control group's."""

from __future__ import annotations

import os
import re
from pathlib import Path

PROCESSES = Path("/proc")
GROUPS = Path("/sys/fs/cgroup")

_UNKNOWN = 1 << 62
"""Bytes if the limit is unknown: no bound."""


def available(processes: Path = PROCESSES, groups: Path = GROUPS) -> int:
    """Return about the bytes that are free without evicting other processes.

    Args:
        processes: Folder of the system's `meminfo`.
        groups: Folder of the limits of control groups, of either version.
    """
    return min(_of_machine(processes), *_limits(processes, groups))


def _of_machine(processes: Path) -> int:
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", _text(processes / "meminfo"), re.MULTILINE)
    if found:
        return int(found[1]) << 10
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # another system
        return _UNKNOWN


def _limits(processes: Path, groups: Path) -> list[int]:
    """Return the limits of this process' control group and enclosing groups."""
    found = [_UNKNOWN]
    for line in _text(processes / "self" / "cgroup").splitlines():
        _, controllers, place = [*line.split(":", 2), "", ""][:3]
        root = groups / "memory" if controllers else groups
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        if controllers and "memory" not in controllers.split(","):
            continue
        inside = root / place.lstrip("/")
        # Within a container, the path may be the host's. The root is then the process' own group.
        for folder in (inside, *inside.parents):
            text = _text(folder / name).strip()
            found += [int(text)] if text.isdecimal() else []
            if folder == root:
                break
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii")
    except (OSError, ValueError):
        return ""
