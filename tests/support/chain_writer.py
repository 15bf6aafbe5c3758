"""A process that appends to a hash chain, and is killed at a given call of a function.

    chain_writer CHAIN INSTANT

It reports each line on its standard output once `append` has returned.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from pathlib import Path

from cohortium.storage.hash_chain import HashChain

LINES = 100


def seal(text: bytes) -> bytes:
    """A stand-in for a signature."""
    return hashlib.sha512(b"secret" + text).digest()


def append_until_killed() -> None:
    """Append lines, and be killed at the given call, be it Python's or C's."""
    path, instant = Path(sys.argv[1]), int(sys.argv[2])
    num_calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal num_calls
        num_calls += event in ("call", "c_call", "c_return")
        if num_calls >= instant:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    chain = HashChain(path, seal)
    for number in range(LINES):
        chain.append(b'{"n":%d}' % number)
        os.write(1, b"%d\n" % number)
