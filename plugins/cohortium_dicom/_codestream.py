"""Size of a compressed image, read from its data before any pixel is decoded.

A decoder allocates memory for the size in its own data, which may differ from the file's header.

References:
    JPEG: ITU-T T.81, B.2.2. JPEG-LS: ITU-T T.87, C.2.2. JPEG 2000: ITU-T T.800, A.5.1.
    RLE: PS3.5, annex G.
"""

from __future__ import annotations

from itertools import pairwise
from struct import unpack_from
from typing import Final

_FRAME_HEADERS: Final = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
"""Second bytes of the markers that begin a frame header of JPEG or JPEG-LS."""

_ALONE: Final = {0x01, *range(0xD0, 0xD9)}
"""Second bytes of the markers without a length."""

_SIZE_OF_2000: Final = b"\xff\x4f\xff\x51"
"""Start of a JPEG 2000 code stream, and the marker of its size."""


def image_size(data: bytes) -> tuple[int, int] | None:
    """Return the rows and columns that compressed data declare.

    Args:
        data: A frame of JPEG, JPEG-LS or JPEG 2000.

    Returns:
        The size, or None if the data declare none.

    Examples:
        >>> image_size(bytes.fromhex("ffd8 ffc0 0011 08 0002 0003"))
        (2, 3)
    """
    if data[:2] == b"\xff\xd8":
        return _jpeg_size(data)
    start = data.find(_SIZE_OF_2000)
    if start < 0 or len(data) < start + 24:
        return None
    right, bottom, left, top = unpack_from(">4I", data, start + 8)
    return bottom - top, right - left


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    place = 2
    while place + 9 <= len(data):
        mark, kind = data[place], data[place + 1]
        if mark != 0xFF:  # noqa: PLR2004 - the first byte of each marker
            return None
        if kind == 0xFF:  # noqa: PLR2004 - a byte that fills up
            place += 1
        elif kind in _ALONE:
            place += 2
        elif kind in _FRAME_HEADERS:
            rows, columns = unpack_from(">2H", data, place + 5)
            return rows, columns
        else:
            (length,) = unpack_from(">H", data, place + 2)
            place += 2 + length
    return None


def run_lengths(data: bytes) -> list[int]:
    """Return the number of bytes that each segment of RLE data makes.

    Args:
        data: A frame of RLE: a header of 64 bytes with the places of its segments, then these.

    Raises:
        struct.error: The header is cut.

    Examples:
        >>> run_lengths(bytes([1, 0, 0, 0, 64]) + bytes(59) + bytes([254, 7, 0, 8]))
        [4]
    """
    count, *places = unpack_from("<16I", data)
    return [
        _unpacked_length(data[start:end]) for start, end in pairwise([*places[:count], len(data)])
    ]


def _unpacked_length(segment: bytes) -> int:
    place = length = 0
    while place + 1 < len(segment):  # an even length may need a byte without meaning
        control = segment[place]
        if control < 128:  # noqa: PLR2004 - that many bytes follow, and one more
            length += min(control + 1, len(segment) - place - 1)
            place += control + 2
        else:  # the next byte repeats, and for 128 not at all
            length += 0 if control == 128 else 257 - control  # noqa: PLR2004
            place += 1 if control == 128 else 2  # noqa: PLR2004
    return length
