"""Pictures and tables of files, each as a case to be tried."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from cohortium.data.image_file import ImageFileOptions, read_image
from cohortium.data.table import read_table
from cohortium.data.table_files import listed_files
from cohortium.data.table_labels import class_labels
from tests.fuzz.mutation import stranger

MEMORY = 1 << 27
"""Bytes that a picture may hold: a header may claim 16 million values."""


@cache
def _picture_samples() -> tuple[tuple[str, bytes], ...]:
    """Files of each kind, with the suffix of each."""
    rng = np.random.default_rng(0)
    grey, colour = (
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)) for shape in ((6, 5), (6, 5, 3))
    )
    deep = Image.fromarray(rng.integers(0, 1 << 16, (6, 5), np.uint16))
    number = io.BytesIO()
    np.save(number, np.asarray(colour))
    kinds: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("png", grey, {}), ("png", colour, {}), ("png", deep, {"transparency": 9}),
        ("png", colour.quantize(5), {}), ("jpeg", colour, {}),
        ("jpeg", grey, {"progressive": True}),
        ("tiff", deep, {"compression": "tiff_lzw"}), ("tiff", colour, {"compression": "jpeg"}),
        ("tiff", grey, {"save_all": True, "append_images": [grey]}),
        ("tiff", grey.convert("1"), {"compression": "group4"}),
    ]  # fmt: skip
    files = [("npy", number.getvalue())]
    for kind, image, options in kinds:
        file = io.BytesIO()
        image.save(file, kind, **options)
        files.append((kind, file.getvalue()))
    return tuple(files)


def picture(folder: Path, rng: Random) -> None:
    suffix, whole = rng.choice(_picture_samples())
    data = stranger(lambda _: whole, rng, PICTURE_TOKENS)
    options = ImageFileOptions(pages=rng.random() < 0.5)
    image = read_image(_put(folder / f"image.{suffix}", data), options)
    assert image.ndim in (3, 4)
    assert image.size


PICTURE_TOKENS = (
    b"(99999999999,)", b"'|O'", b"\x93NUMPY\x01\x00", b"9" * 5_000, b"IHDR", b"IDAT", b"eXIf",
    b"acTL", b"tRNS", b"PLTE", b"II*\x00", b"MM\x00*", b"\x00\x00\x00\x00", b"\xff\xff\xff\xff",
    b"\xff\xd8", b"\xff\xc0", b"\xff\xe1", b"\x7f\xff",
)  # fmt: skip


def table(folder: Path, rng: Random) -> None:
    _put(folder / "a.png", b"")
    data = stranger(lambda _: TABLE, rng, TABLE_TOKENS)
    rows = read_table(_put(folder / "table.csv", data), ["path", "label"])
    labels, names = class_labels(rows, "label")
    files = listed_files(rows, "path", folder, allow_repeats=True)
    assert len(labels) == len(files) == len(rows)
    assert labels.max() < len(names)
    assert {*files} == {(folder / "a.png").resolve()}


TABLE = b'path,label,note\na.png,"x",1\n./a.png,y,"2"\na.png,x,\n'
TABLE_TOKENS = (
    b",", b";", b"\t", b'"', b'""', b"\n", b"\r\n", b"\r", b"\x00", b"\xff", b"\xef\xbb\xbf",
    b"../", b"/etc/", b"path", b"label", b"1.0", b"-1", b"9" * 5_000, b"\xe2\x80\xa8", b"\x85",
)  # fmt: skip


def _put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
