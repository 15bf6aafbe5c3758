from __future__ import annotations

import contextlib
import os
import pickle
import tracemalloc
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cohortium.data import npz_archive
from cohortium.plugin import DataError, StudyError
from cohortium_npz import Npz

if TYPE_CHECKING:
    from pathlib import Path


def content(**changed: Any) -> dict[str, Any]:
    """A small valid file of three grey classes; a change to None leaves an array out."""
    rng = np.random.default_rng(0)
    held: dict[str, Any] = {
        "train_images": rng.integers(0, 256, (12, 5, 4), dtype=np.uint8),
        "train_labels": (np.arange(12) % 3).astype(np.uint8).reshape(12, 1),
        "test_images": rng.integers(0, 256, (6, 5, 4), dtype=np.uint8),
        "test_labels": (np.arange(6) % 3).astype(np.uint8).reshape(6, 1),
    }
    return {name: array for name, array in (held | changed).items() if array is not None}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "lesions.npz"
    np.savez_compressed(path, **content())
    return path


def test_grey_images_become_one_channel(file: Path) -> None:
    splits = Npz(path=str(file)).load()
    assert splits.train.images.shape == (12, 1, 5, 4)
    np.testing.assert_array_equal(splits.train.images[:, 0], content()["train_images"])
    assert splits.train.labels.dtype == np.int64
    np.testing.assert_array_equal(splits.train.labels, np.arange(12) % 3)
    assert splits.validation is None
    assert splits.test is not None
    assert len(splits.test) == 6


def test_channels_move_to_the_front(tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (12, 5, 4, 3), dtype=np.uint8)
    path = tmp_path / "colour.npz"
    np.savez(path, **content(train_images=images, test_images=None, test_labels=None))
    train = Npz(path=str(path)).load().train
    assert train.images.shape == (12, 3, 5, 4)
    np.testing.assert_array_equal(train.images[7, 2], images[7, :, :, 2])


def test_class_names_prefer_study_then_file(tmp_path: Path, file: Path) -> None:
    own = tmp_path / "named.npz"
    np.savez(own, **content(classes=np.array(["mole", "wart", "scar"])))
    assert Npz(path=str(file)).load().classes == ("0", "1", "2")
    assert Npz(path=str(own)).load().classes == ("mole", "wart", "scar")
    assert Npz(path=str(own), classes=("a", "b", "c", "d")).load().classes == ("a", "b", "c", "d")
    assert Npz(path=str(own)).load().name == "named"
    assert Npz(path=str(own), title="Skin", source="us").load().name == "Skin"


def test_class_of_test_split_only_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rare.npz"
    np.savez(path, **content(test_labels=np.array([0, 1, 2, 0, 1, 4])))
    assert Npz(path=str(path)).load().classes == ("0", "1", "2", "3", "4")


def test_the_client_column_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "sites.npz"
    np.savez(path, **content(train_clients=np.repeat(np.arange(4, dtype=np.int16), 3)))
    clients = Npz(path=str(path)).load().train.clients
    assert clients is not None
    np.testing.assert_array_equal(clients, np.repeat(np.arange(4), 3))


def test_relative_path_falls_back_to_data_folder(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file.parent / "elsewhere").mkdir()
    monkeypatch.chdir(file.parent / "elsewhere")
    monkeypatch.delenv("COHORTIUM_DATA", raising=False)
    with pytest.raises(DataError, match=r"no file .*lesions\.npz, and COHORTIUM_DATA names no"):
        Npz(path="lesions.npz").load()
    monkeypatch.setenv("COHORTIUM_DATA", str(file.parent))
    assert len(Npz(path="lesions.npz").load().train) == 12
    with pytest.raises(DataError, match=r"no file .*moles\.npz, and it is not in .* put the file"):
        Npz(path="moles.npz").load()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"train_images": None}, "holds no array 'train_images'"),
        ({"train_labels": None}, "holds no array 'train_labels'"),
        ({"train_images": None, "train_labels": None}, "holds no array 'train_images'"),
        ({"test_labels": None}, "holds no array 'test_labels'"),
        ({"train_images": np.zeros((12, 5, 4))}, "train_images is float64; save it as float32"),
        ({"train_images": np.zeros((12, 5), np.uint8)}, r"train_images has shape \(12, 5\); save"),
        ({"train_images": np.zeros((12, 3, 28, 28), np.uint8)}, "channels last"),
        ({"train_images": np.zeros((12, 0, 4), np.uint8)}, r"shape \(12, 0, 4\)"),
        ({"train_labels": np.zeros(12)}, "train_labels is float64; save whole numbers"),
        ({"train_labels": np.zeros((12, 14), np.uint8)}, "several values for each image"),
        ({"train_labels": np.zeros(11, np.uint8)}, "but there are 12 images"),
        ({"train_labels": np.zeros((12, 5, 4), np.uint8)}, 'as masks have; set task = "segm'),
        ({"train_labels": np.full(12, -1)}, "number the classes from 0"),
        ({"train_labels": np.full(12, 10**9)}, "number the classes from 0"),
        ({"train_labels": np.full(12, 2**64 - 1, np.uint64)}, "beyond 64 signed bits"),
        ({"train_labels": np.array([None] * 12)}, "cannot be read as an npz archive"),
        ({"train_clients": np.zeros(11, np.uint8)}, "train_clients has shape"),
        ({"train_clients": np.array(["a"] * 12)}, "train_clients is <U1; save whole numbers"),
        ({"classes": np.array([1, 2, 3])}, "classes is int64"),
        ({"classes": np.array(["a", "a", "b"])}, "two classes have one name"),
        ({"classes": np.array(["a", "b"])}, "labels must lie in 0…1, found 0…2"),
        ({"test_images": np.zeros((6, 9, 9), np.uint8)}, "test images have shape"),
        (
            {"train_images": np.zeros((0, 5, 4), np.uint8), "train_labels": np.zeros(0, int)},
            "the train split holds no images",
        ),
    ],
)
def test_file_of_other_layout_is_refused(
    tmp_path: Path, changed: dict[str, Any], sentence: str
) -> None:
    path = tmp_path / "odd.npz"
    np.savez(path, **content(**changed))
    with pytest.raises(DataError, match=sentence) as caught:
        Npz(path=str(path)).load()
    assert "odd" in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    "damage", [b"", b"images", b"\x93NUMPY\x01\x00", b"PK\x03\x04" + bytes(40)]
)
def test_non_archive_is_refused(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "damaged.npz"
    path.write_bytes(damage)
    with pytest.raises(
        DataError, match=r"damaged\.npz cannot be read as an npz archive .* copy it"
    ):
        Npz(path=str(path)).load()


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    plain, inside = tmp_path / "plain.npz", tmp_path / "inside.npz"
    plain.write_bytes(pickle.dumps(Trap()))
    np.savez(inside, **content(classes=np.array([Trap()], dtype=object)))
    for path in (plain, inside):
        with pytest.raises(DataError, match="cannot be read"):
            Npz(path=str(path)).load()
    assert not (tmp_path / "sprung").exists()


def test_oversized_file_is_refused_before_unpacking(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(npz_archive, "MAX_ARRAY_BYTES", 300)
    with pytest.raises(DataError, match="unpacks to"):
        Npz(path=str(file)).load()


def test_a_header_that_claims_too_much_is_refused(tmp_path: Path, file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        honest = archive.read("train_images.npy")
    claim = honest.replace(b"(12, 5, 4), }", b"(12, 5, 4000000000000), }")
    path = tmp_path / "bomb.npz"
    np.savez(path, **content(train_images=None))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("train_images.npy", claim)
    with pytest.raises(DataError, match="cannot be read"):
        Npz(path=str(path)).load()


def with_member(path: Path, name: str, data: bytes, packing: int = zipfile.ZIP_STORED) -> None:
    """The small valid file, with a member that NumPy has not written."""
    np.savez(path, **content(**{name: None}))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{name}.npy", data, packing)


def npy(header: bytes, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header + data


IMAGES = b"{'descr': '|u1', 'fortran_order': False, 'shape': (%s,), }\n"


@pytest.mark.parametrize(
    ("data", "packing", "words"),
    [
        (npy(b"{'descr': (\n"), 0, "cannot be read"),
        (npy(IMAGES % b"500000000", bytes(100)), 0, "claims to hold more than there is"),
        (npy(IMAGES % b"500000000", bytes(100)), 8, "claims to hold more than there is"),
        (npy(IMAGES % b"100", bytes(100), b"\x03\x00"), 0, "header of version"),
        (npy(IMAGES % b"100", bytes(100)), zipfile.ZIP_LZMA, "packed in a way"),
        (npy(IMAGES % b"100", bytes(100)), zipfile.ZIP_BZIP2, "packed in a way"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # numpy's, of a header that looks old
def test_array_header_mismatch_is_refused(
    tmp_path: Path, data: bytes, packing: int, words: str
) -> None:
    path = tmp_path / "odd.npz"
    with_member(path, "train_images", data, packing)
    tracemalloc.start()
    with pytest.raises(DataError, match=words):
        Npz(path=str(path)).load()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 21


def test_archive_with_impossible_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.npz"
    with_member(path, "train_images", npy(IMAGES % b"500000000", bytes(100)), 8)
    # The size is said in the directory of the archive, where zipfile looks for it.
    with zipfile.ZipFile(path) as archive:
        size = archive.getinfo("train_images.npy").file_size
    start, said = path.read_bytes().rsplit(size.to_bytes(4, "little"), 1)
    path.write_bytes(start + (600_000_000).to_bytes(4, "little") + said)
    with pytest.raises(DataError, match="claims to hold more than there is"):
        Npz(path=str(path)).load()


@pytest.mark.parametrize(
    ("letters", "words"),
    [(b"\xff\xff\xff\x00", "cannot be read"), (b"\x00\xd8\x00\x00", "cannot be shown")],
)
def test_class_names_with_invalid_characters_are_refused(
    tmp_path: Path, letters: bytes, words: str
) -> None:
    path = tmp_path / "odd.npz"
    header = b"{'descr': '<U1', 'fortran_order': False, 'shape': (3,), }\n"
    names = b"".join(letter + bytes(3) for letter in (b"a", b"b")) + letters
    with_member(path, "classes", npy(header, names))
    with pytest.raises(DataError, match=words):
        Npz(path=str(path)).load()


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore::UserWarning")  # numpy's, of a header that looks old
def test_damaged_file_loads_or_is_refused(file: Path, data: st.DataObject) -> None:
    whole = bytearray(file.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        whole[place] = data.draw(st.integers(0, 255))
    damaged = file.with_name("damaged.npz")
    damaged.write_bytes(whole[: data.draw(st.integers(0, len(whole)) | st.just(len(whole)))])
    with contextlib.suppress(DataError):
        Npz(path=str(damaged)).load()


def test_parameters_of_another_type_are_refused_by_name() -> None:
    with pytest.raises(StudyError, match="npz: path is ''; name the file as text"):
        Npz(path="")
    with pytest.raises(StudyError, match=r"npz: classes is .* as a tuple of text"):
        Npz(path="a.npz", classes="abc")  # type: ignore[arg-type]


@pytest.mark.data
def test_real_images_load_with_clients() -> None:
    if not os.environ.get("COHORTIUM_DATA"):
        pytest.skip("COHORTIUM_DATA names no folder of real images")
    splits = Npz(path="bloodmnist_19.npz", title="BloodMNIST-19").load()
    assert splits.train.images.shape == (5094, 3, 28, 28)
    assert splits.train.clients is not None
    assert len(np.unique(splits.train.clients)) == 19
    assert splits.validation is not None
    assert splits.test is not None
    assert (len(splits.validation), len(splits.test), len(splits.classes)) == (565, 949, 8)


@pytest.mark.parametrize(
    ("name", "reader"),
    [("ok.csv", "table"), ("a.png", "table"), ("a.nii.gz", "nifti"), ("a.dcm", "dicom")],
)
def test_other_files_name_their_data_set(tmp_path: Path, name: str, reader: str) -> None:
    (tmp_path / name).write_text("path,label\n")
    with pytest.raises(DataError, match=f'is no npz archive; .*set name = "{reader}"') as error:
        Npz(path=str(tmp_path / name)).load()
    assert "copy it anew" not in str(error.value)


def test_folder_names_its_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'is no file; it is a folder, .* set name = "folder"'):
        Npz(path=str(tmp_path)).load()
