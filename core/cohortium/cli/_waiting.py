"""Threads of torch that wait without using the processor."""

from __future__ import annotations

import os

CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables by which a user chooses how the threads of OpenMP wait."""


def wait_passively() -> None:
    """Let idle threads of OpenMP sleep, unless the user has chosen how they wait.

    OpenMP reads its variables when torch loads it, so call this before anything imports torch.
    By default, threads that wait for one another keep their processors busy for a time. If another
    process needs such a processor, the wait is long: a run may take twice its time.
    """
    if not any(name in os.environ for name in CHOICES):
        os.environ["OMP_WAIT_POLICY"] = "passive"
