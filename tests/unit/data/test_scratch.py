"""Arrays larger than the limit of memory are in unnamed files, with the same values."""

from __future__ import annotations

import errno
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from attrs import frozen
from torch import Tensor, nn

from cohortium.data import npz_archive
from cohortium.data.examples import DataSpec, Examples
from cohortium.data.npz import read_npz_splits
from cohortium.data.scratch import MAX_MEMORY_BYTES, new_array
from cohortium.errors import DataError, NetworkError
from cohortium.learning.preprocessing import MAX_WHOLE_BYTES, preprocess
from cohortium.plugin import Multiclass

SIDE = 1024
COUNT = MAX_WHOLE_BYTES // (4 * SIDE * SIDE) + 3
"""Images whose float32 values are just above the limit."""


@frozen
class Shifted:
    """A model that shifts intensities."""

    def preprocess(self, images: Tensor) -> Tensor:
        return images[:, :, ::2, ::2] - 0.5

    def build(self, spec: DataSpec, seed: int) -> nn.Module:
        raise NotImplementedError


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 1, SIDE, SIDE), dtype=np.uint8)


def test_large_arrays_are_mapped_without_a_name() -> None:
    small, large = new_array((4, 4), np.uint8), new_array((MAX_MEMORY_BYTES + 1,), np.uint8)
    assert not isinstance(small, np.memmap)
    assert isinstance(large, np.memmap)
    assert large.filename is None or not Path(str(large.filename)).exists()
    large[-1] = 7
    assert large[-1] == 7


def test_parts_are_preprocessed_as_the_whole_is() -> None:
    images = noise(COUNT)
    spec = DataSpec(channels=1, size=(SIDE, SIDE), task=Multiclass(("a", "b")), examples=COUNT)
    found = preprocess(Shifted(), images, spec)
    assert found.shape == (COUNT, 1, SIDE // 2, SIDE // 2)
    expected = torch.from_numpy(images[:, :, ::2, ::2].copy()).float().div_(255) - 0.5
    assert torch.equal(found, expected)


def test_a_full_disk_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    spec = DataSpec(channels=1, size=(SIDE, SIDE), task=Multiclass(("a", "b")), examples=COUNT)
    # The inputs of these would take four times the limit.
    images = np.zeros((4 * COUNT, 1, SIDE, SIDE), np.uint8)
    with pytest.raises(NetworkError, match=r"no room .*No space left on device\); set TMPDIR"):
        preprocess(Shifted(), images, spec)


def test_large_stored_array_is_mapped_and_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(npz_archive, "MAX_MEMORY_BYTES", 1 << 22)
    count = (1 << 22) // (SIDE * SIDE) + 2
    images = noise(2).repeat(count // 2, axis=0)
    labels = np.arange(len(images)) % 2
    path = tmp_path / "large.npz"
    np.savez(path, train_images=images[:, 0], train_labels=labels)
    train = read_npz_splits(path, name="large").train
    assert not train.images.flags.writeable
    assert np.array_equal(train.images, images)
    held = Examples(images, labels)
    assert train.fingerprint == held.fingerprint
    chosen = train.select(np.arange(0, len(images), 2))
    assert np.array_equal(chosen.images, images[::2])
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("train_images.npy").header_offset
    damaged = bytearray(path.read_bytes())
    start = damaged.index(b"NUMPY", offset)
    place = damaged.index(b"'shape': (", start) + len("'shape': (")
    damaged[place : place + 3] = b"999"
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="claims to hold more than there is"):
        read_npz_splits(path, name="large")
