"""Features kept between runs: the same bits, and only from a whole file with the right key."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve, field, frozen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cohortium.data.examples import DataSpec
from cohortium.errors import RunError
from cohortium.learning import kept_features, preprocessing
from cohortium.learning.feature_key import MAX_SAMPLE, feature_key, sample_positions
from cohortium.learning.kept_features import HEADER_BYTES, VARIABLE, FeatureFolder
from cohortium.learning.preprocessing import preprocess
from cohortium.plugin import Multiclass, linear_head
from cohortium_cnn import CNN
from cohortium_descriptor import Descriptor
from cohortium_gaussian import Gaussian
from cohortium_phantom import Phantom
from cohortium_pretrained import Pretrained
from cohortium_scatternet import ScatterNet
from tests.support.federations import tiny_federation

COUNT, SIDE = 40, 6
SPEC = DataSpec(channels=1, size=(SIDE, SIDE), task=Multiclass(("a", "b")), examples=COUNT)


@frozen
class Powers:
    """A model of features: powers of the intensities, by weights that a file may hold."""

    exponent: float = 2.0
    weights: str = ""
    calls: list[int] = field(factory=list, eq=False, repr=False)
    secret: list[float] = field(factory=lambda: [1.0], eq=False, repr=False)

    def preprocess(self, images: Tensor) -> Tensor:
        self.calls.append(len(images))
        scale = self.secret[0]
        if self.weights:
            scale *= 1.0 + len(Path(self.weights).read_bytes()) // 1000
        return images.flatten(1) ** self.exponent * scale

    def build(self, spec: DataSpec, seed: int) -> nn.Module:
        del seed
        return linear_head(spec.channels * SIDE * SIDE, len(spec.classes))


def drawn(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (COUNT, *SPEC.shape), dtype=np.uint8)


def files(folder: FeatureFolder) -> list[Path]:
    return sorted(folder.path.iterdir()) if folder.path.exists() else []


@pytest.fixture
def folder(tmp_path: Path) -> FeatureFolder:
    return FeatureFolder(tmp_path / "features")


def test_second_run_reads_the_same_bits(folder: FeatureFolder) -> None:
    model, images = Powers(), drawn()
    expected = preprocess(model, images, SPEC)
    first = preprocess(model, images, SPEC, folder)
    assert model.calls == [COUNT, MAX_SAMPLE, COUNT]
    second = preprocess(model, images, SPEC, folder)
    assert model.calls == [COUNT, MAX_SAMPLE, COUNT, MAX_SAMPLE]
    assert torch.equal(first, expected)
    assert torch.equal(second, expected)
    assert second.dtype == expected.dtype


def test_large_sets_are_computed_into_their_file(
    folder: FeatureFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images = Powers(), drawn()
    expected = preprocess(model, images, SPEC)
    for name, value in (("MAX_WHOLE_BYTES", 1000), ("PART_BYTES", 1000)):
        monkeypatch.setattr(preprocessing, name, value)
    monkeypatch.setattr(kept_features, "MAX_MEMORY_BYTES", 1000)
    for _ in range(2):
        found = preprocess(model, images, SPEC, folder)
        assert torch.equal(found, expected)
        found.zero_()  # in this process alone
    assert torch.equal(preprocess(model, images, SPEC, folder), expected)
    assert model.calls.count(MAX_SAMPLE) == 3
    assert len(files(folder)) == 1


def test_files_and_folder_are_private(folder: FeatureFolder) -> None:
    before = os.umask(0)
    try:
        preprocess(Powers(), drawn(), SPEC, folder)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    (file,) = files(folder)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_inputs_in_the_form_of_images_are_not_kept(folder: FeatureFolder) -> None:
    expected = preprocess(CNN(), drawn(), SPEC)
    assert torch.equal(preprocess(CNN(), drawn(), SPEC, folder), expected)
    assert not files(folder)


def changed_image() -> np.ndarray:
    images = drawn()
    images[1, 0, 3, 3] ^= 1  # not in the sample
    assert 1 not in sample_positions(COUNT)
    return images


def with_weights(folder: Path, content: bytes) -> Powers:
    path = folder / "weights"
    path.write_bytes(content)
    return Powers(weights=str(path))


def test_key_covers_all_that_determines_features(tmp_path: Path) -> None:
    shape = (1, 4, 9)
    reshaped = evolve(SPEC, size=(4, 9))
    ranged = evolve(SPEC, pixel_type="int16", intensity_range=(0.0, 255.0))
    wider = evolve(ranged, intensity_range=(0.0, 256.0))

    def key(model: Any, images: np.ndarray, spec: DataSpec = SPEC) -> str:
        sample = images[sample_positions(len(images))]
        inputs = torch.from_numpy(sample.astype(np.float32)) / spec.intensity_range[1]
        return feature_key(model, images, spec, model.preprocess(inputs))

    threads = torch.get_num_threads()
    keys = [
        key(Powers(), drawn()),
        key(Powers(), changed_image()),
        key(Powers(), drawn()[:-1]),
        key(Powers(), drawn().reshape(COUNT, *shape), reshaped),
        key(Powers(), drawn().astype(np.int16), ranged),
        key(Powers(), drawn().astype(np.int16), wider),
        key(Powers(exponent=3.0), drawn()),
        key(with_weights(tmp_path, b"one"), drawn()),
        key(with_weights(tmp_path, b"two"), drawn()),  # of the same features
        key(Powers(secret=[1.5]), drawn()),  # weights that no parameter names
        key(ScatterNet(scales=1, groups=0), drawn()),
    ]
    torch.set_num_threads(threads + 1)
    try:
        keys.append(key(Powers(), drawn()))
    finally:
        torch.set_num_threads(threads)
    assert len(set(keys)) == len(keys)
    assert key(Powers(), drawn()) == keys[0]


def test_key_follows_the_source_of_a_package(tmp_path: Path, monkeypatch: Any) -> None:
    package = tmp_path / "powers_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from attrs import frozen\n@frozen\nclass Model:\n"
        "    def preprocess(self, images): return images.flatten(1)\n"
    )
    (package / "beside.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    model = __import__("powers_of_mine").Model()
    sample = torch.zeros(2, 3)
    first = feature_key(model, drawn(), SPEC, sample)
    (package / "beside.py").write_text("x = 2\n")
    assert feature_key(model, drawn(), SPEC, sample) != first


def kept(folder: FeatureFolder) -> tuple[Path, Tensor]:
    """Return the file of some features, and them."""
    features = preprocess(Powers(), drawn(), SPEC, folder)
    (file,) = files(folder)
    return file, features


def flipped(position: int) -> Callable[[bytes], bytes]:
    def flip(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[position] ^= 4
        return bytes(changed)

    return flip


def lying(**changes: Any) -> Callable[[bytes], bytes]:
    def lie(content: bytes) -> bytes:
        magic, text, _ = content[:HEADER_BYTES].split(b"\n")
        header = json.dumps(json.loads(text) | changes).encode()
        return (magic + b"\n" + header + b"\n").ljust(HEADER_BYTES, b"\0") + content[HEADER_BYTES:]

    return lie


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "header alone": lambda content: content[:HEADER_BYTES],
    "truncated": lambda content: content[:-1],
    "longer": lambda content: content + b"x",
    "a value": flipped(-3),
    "the format": flipped(2),
    "zeros": lambda content: bytes(len(content)),
    "nested": lambda content: (b"cohortium features 1\n" + b"[" * 4000).ljust(len(content)),
    "another key": lying(key="0" * 64),
    "a huge shape": lying(shape=[1 << 62, 1 << 62]),
    "a negative shape": lying(shape=[-COUNT, -SIDE * SIDE]),
    "no shape": lying(shape=[]),
    "another shape": lying(shape=[COUNT * SIDE, SIDE]),
    "objects": lying(dtype="|O"),
    "whole numbers": lying(dtype="<i4"),
    "a further entry": lying(more=1),
    "a text for a shape": lying(shape="40"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_file_is_computed_again_and_replaced(
    folder: FeatureFolder, damage: Callable[[bytes], bytes]
) -> None:
    file, features = kept(folder)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert torch.equal(preprocess(Powers(), drawn(), SPEC, folder), features)
    assert file.read_bytes() == whole


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    position=st.integers(0, HEADER_BYTES + 4 * COUNT * SIDE * SIDE - 1), value=st.integers(0, 255)
)
def test_any_changed_byte_leaves_the_features_right(
    tmp_path: Path, position: int, value: int
) -> None:
    folder = FeatureFolder(tmp_path / "features")
    file, features = kept(folder)
    content = bytearray(file.read_bytes())
    content[position] = value
    file.write_bytes(content)
    assert torch.equal(preprocess(Powers(), drawn(), SPEC, folder), features)


def test_damage_is_logged_in_one_sentence(
    folder: FeatureFolder, caplog: pytest.LogCaptureFixture
) -> None:
    file, _ = kept(folder)
    file.write_bytes(flipped(-1)(file.read_bytes()))
    preprocess(Powers(), drawn(), SPEC, folder)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{file} is damaged or foreign (its content has another SHA-256), and is replaced."
    )


@pytest.mark.parametrize("make", ["link", "pipe"])
def test_links_and_pipes_are_replaced(folder: FeatureFolder, tmp_path: Path, make: str) -> None:
    file, features = kept(folder)
    target = tmp_path / "elsewhere"
    file.rename(target)
    before = target.read_bytes()
    if make == "link":
        file.symlink_to(target)
    else:
        os.mkfifo(file)
    assert torch.equal(preprocess(Powers(), drawn(), SPEC, folder), features)
    assert file.is_file()
    assert not file.is_symlink()
    assert target.read_bytes() == before


def test_another_users_file_is_replaced(
    folder: FeatureFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(folder)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    model = Powers()
    preprocess(model, drawn(), SPEC, folder)
    assert model.calls == [MAX_SAMPLE, COUNT]


def test_folder_that_is_a_file_is_refused_before_work(tmp_path: Path) -> None:
    (tmp_path / "features").write_text("mine")
    model = Powers()
    words = (
        r"^the folder of features .*features cannot be used \(.+\); correct .* or leave it out\.$"
    )
    with pytest.raises(RunError, match=words):
        preprocess(model, drawn(), SPEC, FeatureFolder(tmp_path / "features"))
    assert model.calls == [MAX_SAMPLE]


def test_full_disk_is_refused_before_work(
    folder: FeatureFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    model = Powers()
    with pytest.raises(RunError, match="No space left on device"):
        preprocess(model, drawn(), SPEC, folder)
    assert model.calls == [MAX_SAMPLE]
    assert not files(folder)


def test_failing_model_leaves_no_file(folder: FeatureFolder) -> None:
    @frozen
    class Fails(Powers):
        def preprocess(self, images: Tensor) -> Tensor:
            if len(images) == COUNT:
                raise OSError("its own file is gone")
            return super().preprocess(images)

    with pytest.raises(OSError, match="its own file is gone"):
        preprocess(Fails(), drawn(), SPEC, folder)
    assert not files(folder)


def test_least_recently_used_files_make_room(tmp_path: Path) -> None:
    size = HEADER_BYTES + 4 * COUNT * SIDE * SIDE
    folder = FeatureFolder(tmp_path / "features", max_bytes=2 * size)
    model, names = Powers(), list[Path]()
    for seed in range(2):
        preprocess(model, drawn(seed), SPEC, folder)
        (new,) = set(files(folder)) - set(names)
        os.utime(new, ns=(seed, seed))
        names.append(new)
    (folder.path / "notes.features").write_text("a person's own file")
    preprocess(model, drawn(0), SPEC, folder)  # now the latest one
    preprocess(model, drawn(2), SPEC, folder)
    assert names[0].exists()
    assert not names[1].exists()
    assert (folder.path / "notes.features").exists()
    assert len(files(folder)) == 3


def test_set_larger_than_the_folder_is_not_kept(tmp_path: Path) -> None:
    folder = FeatureFolder(tmp_path / "features", max_bytes=1000)
    expected = preprocess(Powers(), drawn(), SPEC)
    assert torch.equal(preprocess(Powers(), drawn(), SPEC, folder), expected)
    assert not files(folder)


WRITER = """
import sys
import numpy as np
from pathlib import Path
from cohortium.learning.kept_features import FeatureFolder

array = np.arange(600, dtype=np.float32).reshape(20, 30)
with FeatureFolder(Path(sys.argv[1])).new_file(sys.argv[2], array.nbytes) as file:
    print("writing", flush=True)
    sys.stdin.readline()
    file.finish(array)
"""
KEY = "ab" * 32
ARRAY = np.arange(600, dtype=np.float32).reshape(20, 30)


def writer(folder: FeatureFolder) -> subprocess.Popen[str]:
    """Start a process that has begun to write, and waits for a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder.path), KEY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def write(folder: FeatureFolder) -> None:
    with folder.new_file(KEY, ARRAY.nbytes) as file:
        file.finish(ARRAY)


def test_killed_writer_leaves_nothing_that_counts(folder: FeatureFolder) -> None:
    process = writer(folder)
    (rest,) = files(folder)
    assert rest.name.startswith(".")
    assert stat.S_IMODE(rest.stat().st_mode) == 0o600
    process.kill()
    process.communicate()
    assert rest.exists()
    assert folder.read(KEY) is None
    write(folder)
    assert np.array_equal(folder.read(KEY), ARRAY)  # type: ignore[arg-type]
    assert files(folder) == [folder.path / f"{KEY}.features"]


def test_two_processes_write_at_the_same_time(folder: FeatureFolder) -> None:
    process = writer(folder)
    write(folder)
    assert len(files(folder)) == 2  # the other's is in use, and stays
    first = folder.read(KEY)
    process.communicate("\n")
    assert process.returncode == 0
    for found in (first, folder.read(KEY)):
        assert np.array_equal(found, ARRAY)  # type: ignore[arg-type]
    assert files(folder) == [folder.path / f"{KEY}.features"]


CELLS = Phantom(examples=40, validation=0, test=0, seed=5)
MODELS = {
    "descriptor": Descriptor(center_on=CELLS, components=16),
    "scatternet": ScatterNet(),
    "pretrained": Pretrained(images=CELLS, width=4, epochs=1),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "pretrained" else [pytest.mark.slow])
        for name in MODELS
    ],
)
def test_runs_end_with_the_same_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digest(**changes: Any) -> str:
        data = Phantom(examples=60, validation=12, test=12)
        run = tiny_federation(
            dataset=data, model=MODELS[name], sites=2, rounds=1,
            privatizer=Gaussian(epsilon=6.0, noise="local"), insecure_seeded_secrets=True,
            **changes,
        )  # fmt: skip
        found: str = run.run().weights_sha256
        return found

    monkeypatch.delenv(VARIABLE, raising=False)
    without = digest()
    folder = FeatureFolder(tmp_path / "features")
    monkeypatch.setenv(VARIABLE, str(folder.path))
    assert digest() == without
    held = {path: path.stat().st_ino for path in files(folder)}
    assert len(held) == 4  # two sites, validation and test
    assert digest() == without
    assert {path: path.stat().st_ino for path in files(folder)} == held
