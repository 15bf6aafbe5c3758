"""Image files: each is read as it is, or refused in one sentence."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from cohortium.data.image_array import read_mask_array
from cohortium.data.image_file import ImageFileOptions, decode_mask, read_image
from cohortium.data.picture import ORIENTATION
from cohortium.data.resize import resize
from cohortium.errors import DataError, StudyError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 4), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (6, 4, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 1 << 16, (6, 4), dtype=np.uint16)
OPAQUE = np.full((6, 4, 1), 255, np.uint8)
PLANES = COLOUR.transpose(2, 0, 1)

Maker = Callable[[Path], Any]


def saved(image: Any, name: str, **options: Any) -> tuple[str, Maker]:
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    return name, lambda path: picture.save(path, **options)


def exif(turn: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ORIENTATION] = turn
    return tags


def turned(image: Any, name: str) -> tuple[str, Maker]:
    return saved(image, name, exif=exif(6))


def put(name: str, data: bytes) -> tuple[str, Maker]:
    return name, lambda path: path.write_bytes(data)


def packed(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def png(width: int, height: int, bits: int, kind: int, data: bytes) -> bytes:
    """A PNG file, whose header may say anything."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def tiff(values: np.ndarray, **tags: int) -> bytes:
    """An uncompressed TIFF file of one strip, with tags that Pillow does not write."""
    bits, channels = values.itemsize * 8, values.shape[2] if values.ndim > 2 else 1
    formats = {"u": 1, "i": 2, "f": 3}
    entries = {
        256: [values.shape[1]], 257: [values.shape[0]], 258: [bits] * channels, 259: [1],
        262: [tags.get("photometric", 1)], 273: [8], 277: [channels], 278: [values.shape[0]],
        279: [values.nbytes], 339: [formats[values.dtype.kind]] * channels,
    }  # fmt: skip
    if tags.get("planar"):
        size = values[..., 0].nbytes
        places = [8 + size * channel for channel in range(channels)]
        entries |= {273: places, 279: [size] * channels, 284: [2]}
        values = values.transpose(2, 0, 1)
    if "extra" in tags:
        entries[338] = [tags["extra"]]
    data, directory, behind = values.tobytes(), b"", b""
    start = 8 + len(data)
    aside = start + 2 + 12 * len(entries) + 4
    for tag, numbers in sorted(entries.items()):
        body = struct.pack(f"<{len(numbers)}I", *numbers)
        if len(body) > 4:
            place = struct.pack("<I", aside + len(behind))
            behind += body
        else:
            place = body
        directory += struct.pack("<HHI", tag, 4, len(numbers)) + place
    head = b"II*\x00" + struct.pack("<I", start) + data
    return head + struct.pack("<H", len(entries)) + directory + bytes(4) + behind


def read(folder: Path, case: tuple[str, Maker], **options: Any) -> np.ndarray:
    name, make = case
    make(folder / name)
    return read_image(folder / name, ImageFileOptions(**options))


PAGES = {"save_all": True, "append_images": [Image.fromarray(GREY[::-1])]}
PALETTE = Image.fromarray(COLOUR).quantize(8)


@pytest.mark.parametrize(
    ("case", "wanted"),
    [
        (saved(GREY, "a.png"), GREY[None]),
        (saved(COLOUR, "a.PNG"), PLANES),
        (saved(DEEP, "a.png"), DEEP[None]),
        (saved(GREY, "a.tif"), GREY[None]),
        (saved(COLOUR, "a.tiff", compression="tiff_lzw"), PLANES),
        (saved(DEEP, "a.tif", compression="tiff_deflate"), DEEP[None]),
        (saved(GREY.astype(np.float32) / 7, "a.tif"), GREY[None].astype(np.float32) / 7),
        (put("a.tif", tiff(DEEP.astype(np.int16))), DEEP[None].astype(np.int16)),
        (put("a.tif", tiff(GREY, photometric=0)), 255 - GREY[None]),
        (put("a.tif", tiff(COLOUR, photometric=2, planar=1)), PLANES),
        (saved(np.dstack([COLOUR, OPAQUE]), "a.png"), PLANES),
        (saved(np.dstack([GREY[..., None], OPAQUE]), "a.png"), GREY[None]),
        (saved(np.full((6, 4), 9, np.uint8), "a.png", transparency=8), np.full((1, 6, 4), 9)),
        (saved(Image.fromarray(GREY > 127), "a.png"), (GREY[None] > 127) * np.uint8(255)),
        (saved(PALETTE, "a.png"), np.asarray(PALETTE.convert("RGB")).transpose(2, 0, 1)),
        (saved(Image.fromarray(GREY).convert("P"), "a.png"), GREY[None]),
        (saved(np.full((8, 8), 77, np.uint8), "a.jpg"), np.full((1, 8, 8), 77)),
        (saved(COLOUR, "a.jpg", format="PNG"), PLANES),
        (put("a.npy", packed(DEEP.astype(np.uint8))), DEEP[None].astype(np.uint8)),
        (put("a.npy", packed(COLOUR)), PLANES),
    ],
)  # fmt: skip
def test_image_file_is_read_without_loss(
    tmp_path: Path, case: tuple[str, Maker], wanted: np.ndarray
) -> None:
    found = read(tmp_path, case)
    np.testing.assert_array_equal(found, wanted)
    assert found.flags.c_contiguous


def test_declared_pages_become_depth(tmp_path: Path) -> None:
    case = saved(GREY, "a.tif", **PAGES)
    found = read(tmp_path, case, pages=True)
    np.testing.assert_array_equal(found, np.stack([GREY, GREY[::-1]])[None])
    case = saved(GREY, "b.tif", save_all=True, append_images=[Image.fromarray(GREY[:3])])
    with pytest.raises(DataError, match=r"b\.tif has pages of different sizes or kinds"):
        read(tmp_path, case, pages=True)


DEEP_COLOUR = zlib.compress(b"".join(b"\0" + bytes(24) for _ in range(6)))
SPECIAL = np.array([[np.nan, 1]], np.float32)
CLEAR = np.dstack([COLOUR, OPAQUE - 1])
CMYK = Image.fromarray(COLOUR).convert("CMYK")


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (saved(CLEAR, "a.png"), "has transparent pixels"),
        (saved(np.full((6, 4), 9, np.uint8), "a.png", transparency=9), "has transparent pixels"),
        (saved(DEEP, "a.png", transparency=9), "has transparent pixels"),
        (saved(CMYK, "a.jpg"), "is of mode CMYK"),
        (saved(CMYK, "a.tif"), "is of mode CMYK"),
        (saved(Image.fromarray(COLOUR).convert("LAB"), "a.tif"), "is of mode LAB"),
        (saved(GREY.astype(np.int32), "a.tif"), "is of mode I, stored as I;32S"),
        (put("a.png", png(4, 6, 16, 2, DEEP_COLOUR)), "of which Pillow keeps 8 bits"),
        (put("a.tif", tiff(np.dstack([DEEP] * 3), photometric=2)), "Pillow keeps 8 bits"),
        (put("a.tif", tiff(np.dstack([DEEP] * 3), photometric=2, planar=1)), "keeps 8 bits"),
        (put("a.tif", tiff(np.dstack([COLOUR, OPAQUE]), photometric=2, extra=0)), "stored as RGBX"),
        (put("a.tif", tiff(DEEP, photometric=0)), "stores white as 0"),
        (put("a.tif", tiff(GREY.astype(np.int8))), "signed values of 8 bits"),
        (put("a.tif", tiff(GREY.astype(np.float64))), "of a kind that is not read"),
        (put("a.tif", tiff(SPECIAL)), "not finite numbers"),
        (saved(GREY, "a.tif", **PAGES), "several pictures .* declare pages = true"),
        (saved(GREY, "a.png", **PAGES), "several pictures .* file of its own.$"),
        (turned(COLOUR, "a.jpg"), "asks its viewer to turn it"),
        (turned(COLOUR, "a.png"), "asks its viewer to turn it"),
        (turned(COLOUR, "a.tif"), "asks its viewer to turn it"),
        (saved(GREY, "a.png", format="GIF"), "is no PNG, JPEG or TIFF file, despite its name"),
        (put("a.png", b""), "is no PNG, JPEG or TIFF file"),
        (put("a.png", png(1 << 30, 1 << 30, 8, 0, b"")), "far more pixels"),
        (put("a.png", png(1 << 14, 1 << 13, 8, 6, b"")), "an image may have 134,217,728"),
        (put("a.png", png(1 << 12, 1 << 13, 8, 0, b"")), "claims 33,554,432 values, which"),
        (put("a.png", png(9, 9, 8, 0, bytes(20))), "cannot read .* copy it anew"),
        (put("a.png", png(4, 6, 8, 0, zlib.compress(bytes(30)))[:-25]), "cannot read .*truncated"),
        (put("a.png", png(4, 6, 8, 0, b"")[:33]), "is no PNG, JPEG or TIFF file"),
        (("a.png", Path.mkdir), "is no file"),
        (("a.png", os.mkfifo), "is no file"),
        (("a.png", id), "cannot read .*No such file"),
        (("a.npy", id), "there is no file"),
        (put("a.npy", packed(GREY)[:140]), "cannot be read as an npy file"),
        (put("a.npy", b"\x93NUMPY\x03\x00" + bytes(9)), "header of version"),
        (put("a.npy", packed(np.array([{}]))), "cannot be read as an npy file"),
        (put("a.npy", packed(np.zeros((3, 3, 3), np.uint8))), "can be read as"),
    ],
)  # fmt: skip
def test_image_file_with_several_readings_is_refused(
    tmp_path: Path, case: tuple[str, Maker], words: str
) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read(tmp_path, case)
    assert str(tmp_path / case[0]) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lying_header_allocates_little(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1 << 15, 1 << 15, 8, 0, zlib.compress(bytes(1 << 20))))
    huge = packed(GREY).replace(b"(6, 4), }", b"(6, 400000000), }")
    (tmp_path / "a.npy").write_bytes(huge)
    tracemalloc.start()
    for name in ("a.png", "a.npy"):
        with pytest.raises(DataError):
            read_image(tmp_path / name)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 21


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_saved_array_is_read_back(tmp_path: Path, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(("png", "tif", "npy")))
    dtype = data.draw(st.sampled_from((np.uint8, np.uint16)))
    shape = data.draw(array_shapes(min_dims=2, max_dims=2, max_side=40))
    is_colour = dtype == np.uint8 and kind != "npy" and data.draw(st.booleans())
    image = data.draw(
        arrays(np.uint8 if kind == "npy" else dtype, (*shape, 3) if is_colour else shape)
    )
    path = tmp_path / f"a.{kind}"
    np.save(path, image) if kind == "npy" else Image.fromarray(image).save(path)
    wanted = image.transpose(2, 0, 1) if is_colour else image[None]
    found = read_image(path)
    np.testing.assert_array_equal(found, wanted)
    assert found.dtype == wanted.dtype


SAMPLES = dict(
    [
        saved(COLOUR, "a.png"),
        saved(COLOUR, "a.jpg"),
        saved(DEEP, "a.tif", compression="tiff_lzw"),
        saved(PALETTE, "b.png"),
        put("a.npy", packed(COLOUR)),
    ]
)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_image_file_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(SAMPLES)))
    SAMPLES[name](tmp_path / name)
    whole = bytearray((tmp_path / name).read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        whole[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)) | st.just(len(whole)))
    (tmp_path / name).write_bytes(whole[:cut])
    with contextlib.suppress(DataError):
        assert read_image(tmp_path / name, ImageFileOptions(pages=True)).size


def test_resize_averages_and_rounds_each_type(tmp_path: Path) -> None:
    steps = np.repeat(np.repeat([[0, 255], [255, 0]], 4, 0), 4, 1)[None]
    for dtype, scale in ((np.uint8, 1), (np.uint16, 257), (np.int16, -100), (np.float32, 0.5)):
        image = (steps * scale).astype(dtype)
        found = resize(image, (2, 2), "nearest")
        np.testing.assert_array_equal(found, image[:, ::4, ::4])
        assert found.dtype == dtype
        mean = resize(image, (1, 1), "bilinear")
        assert abs(float(mean[0, 0, 0]) - 127.5 * scale) <= 0.51
    ramp = np.arange(64, dtype=np.uint16).reshape(1, 8, 8) * 1000
    byte = (ramp // 1000).astype(np.uint8)
    for method in ("bilinear", "bicubic"):
        small = resize(ramp, (3, 5), method)
        # Pillow rounds bytes after each axis, and other types once.
        assert np.abs(small / 1000 - resize(byte, (3, 5), method)).max() <= 1.01
    assert resize(byte, (8, 8), "bicubic") is byte
    path = tmp_path / "a.png"
    Image.fromarray(DEEP).save(path)
    assert read_image(path, ImageFileOptions(size=(2, 3))).shape == (1, 2, 3)


def test_volume_is_not_resized(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a volume, and size = \[2, 2\] resizes only flat"):
        read(tmp_path, saved(GREY, "a.tif", **PAGES), pages=True, size=(2, 2))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": (0, 4)}, r"size is \(0, 4\); give height and width"),
        ({"size": (4,)}, "give height and width"),
        ({"size": [4, 4]}, "give height and width"),
        ({"size": (4, 1 << 16)}, "give height and width"),
        ({"resize": "lanczos"}, "resize is 'lanczos'; let it be one of bilinear"),
        ({"layout": "nchw"}, "layout is 'nchw'; let it be one of auto"),
    ],
)
def test_invalid_options_are_refused_by_name(options: dict[str, Any], words: str) -> None:
    with pytest.raises(StudyError, match=words):
        ImageFileOptions(**options)


def test_mask_keeps_labels(tmp_path: Path) -> None:
    labels = (GREY % 3).astype(np.uint8)
    cases = {
        "grey.png": (saved(labels, "grey.png"), labels),
        "bits.png": (saved(Image.fromarray(labels > 1), "bits.png"), labels > 1),
        "a.npy": (put("a.npy", packed(labels)), labels),
        "palette.png": (saved(PALETTE, "palette.png"), np.asarray(PALETTE)),
    }
    for name, ((_, make), wanted) in cases.items():
        make(tmp_path / name)
        found = decode_mask(tmp_path / name, ImageFileOptions())
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, wanted)
        halved = decode_mask(tmp_path / name, ImageFileOptions(size=(3, 2)))
        assert set(np.unique(halved)) <= set(np.unique(found))
    files = [tmp_path / "grey.png", tmp_path / "a.npy"]
    assert read_mask_array(files, ImageFileOptions()).shape == (2, 6, 4)
    Image.fromarray(COLOUR).save(tmp_path / "colour.png")
    np.save(tmp_path / "deep.npy", DEEP)
    for name in ("colour.png", "deep.npy"):
        with pytest.raises(DataError, match=rf"{name} is .* which is no mask"):
            decode_mask(tmp_path / name, ImageFileOptions())


def test_pages_of_masks_become_depth(tmp_path: Path) -> None:
    labels = (GREY % 3).astype(np.uint8)
    first, second = Image.fromarray(labels), Image.fromarray(labels[::-1])
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    np.save(tmp_path / "a.npy", np.stack([labels, labels[::-1]]))
    for name in ("a.tif", "a.npy"):
        found = decode_mask(tmp_path / name, ImageFileOptions(pages=True))
        np.testing.assert_array_equal(found, np.stack([labels, labels[::-1]]))
        with pytest.raises(DataError, match="is a volume, and size"):
            decode_mask(tmp_path / name, ImageFileOptions(pages=True, size=(2, 2)))
    with pytest.raises(DataError, match="several pictures"):
        decode_mask(tmp_path / "a.tif", ImageFileOptions())
