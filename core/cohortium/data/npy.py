"""Arrays in NumPy's own format, whose header is checked before memory is allocated.

A file may come from anyone. Nothing in it is ever unpickled.
"""

from __future__ import annotations

import math
import struct
import tokenize
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

UNREADABLE: Final = (
    EOFError,
    MemoryError,
    OSError,
    OverflowError,
    SyntaxError,
    SystemError,  # text with invalid characters
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
)
"""Errors that NumPy raises over damaged files.

They are the known ones.
"""

_HEADERS: Final = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
"""Readers of an array's header, by its version.

A third is for fields, which plain arrays lack.
"""


def check_header(file: IO[bytes], name: str, max_bytes: int) -> tuple[int, ...]:
    """Return the shape that an array's header states.

    NumPy would allocate memory for the whole array before it reads any of it.

    Args:
        file: The array's bytes, at their begin.
        name: Name of the array in an error.
        max_bytes: Largest number of bytes that its data can have.

    Raises:
        ValueError: The array claims to be larger than its data can be, or has another header.
    """
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"{name} has a header of version {version}")
    shape, _, dtype = _HEADERS[version](file)
    if math.prod(shape) * dtype.itemsize > max_bytes:
        raise ValueError(f"{name} claims to hold more than there is")
    return tuple(shape)


def read_npy(path: Path, max_values: int) -> NDArray[Any]:
    """Return the array of an npy file.

    Raises:
        ValueError: The file is damaged, has Python objects, or has more than `max_values` values.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        shape = check_header(file, "its array", path.stat().st_size)
        if math.prod(shape) > max_values:
            raise ValueError(f"its shape {shape} has more than {max_values:,} values")
        file.seek(0)
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return array
