"""Random alterations of a file of lines."""

from __future__ import annotations

import random


def altered(lines: list[bytes], rng: random.Random) -> bytes:
    """The lines after one random edit, removal or swap."""
    lines = list(lines)
    kind = rng.choice(["flip", "delete", "insert", "remove", "swap", "repeat", "move"])
    k = rng.randrange(len(lines))
    j = rng.randrange(len(lines))
    if kind == "remove":
        del lines[k]
    elif kind == "swap":
        lines[k], lines[j] = lines[j], lines[k]
    elif kind == "repeat":
        lines.insert(j, lines[k])
    elif kind == "move":
        lines.insert(j, lines.pop(k))
    whole = bytearray(b"".join(lines))
    place = rng.randrange(len(whole))
    if kind == "flip":
        whole[place] ^= 1 << rng.randrange(8)
    elif kind == "delete":
        del whole[place : place + rng.randint(1, 40)]
    elif kind == "insert":
        whole[place:place] = rng.choice([b" ", b"\n", b"0", b'{"number":1', rng.randbytes(3)])
    return bytes(whole)


def is_cut(data: bytes, whole: bytes) -> bool:
    """Whether only the last lines are missing, perhaps with the beginning of one."""
    return whole.startswith(data[: data.rfind(b"\n") + 1])
