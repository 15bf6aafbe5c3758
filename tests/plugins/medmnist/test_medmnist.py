from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import urllib.error
import urllib.request
from http.client import HTTPMessage
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.response import addinfourl

import numpy as np
import pytest
import torch
from medmnist import evaluator

import cohortium_medmnist
from cohortium.plugin import DataError, StudyError
from cohortium_medmnist import ORIGINS, SIZES, VOLUME_SIZES, MedMNIST

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without data, on a machine without a network."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.delenv("COHORTIUM_DATA", raising=False)

    def unplugged(*_: object) -> NoReturn:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request.HTTPSHandler, "https_open", unplugged)
    return home


def serve(monkeypatch: pytest.MonkeyPatch, body: io.BytesIO, *redirections: str) -> None:
    """Pretend that every https address has `body`, after `redirections` from the first."""
    left = iter(redirections)

    def opened(_: object, request: urllib.request.Request) -> addinfourl:
        headers, target = HTTPMessage(), next(left, None)
        if target is not None:
            headers["Location"] = target
        answer = addinfourl(
            body if target is None else io.BytesIO(), headers, request.full_url,
            200 if target is None else 302,
        )  # fmt: skip
        answer.msg = "as asked"  # type: ignore[attr-defined]
        return answer

    monkeypatch.setattr(urllib.request.HTTPSHandler, "https_open", opened)


def no_network(*_: object) -> NoReturn:
    pytest.fail("the network")


def stand_in() -> bytes:
    """A file in the layout of BreastMNIST, small."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {}
    for split, size in (("train", 6), ("val", 2), ("test", 4)):
        arrays[f"{split}_images"] = np.full((size, 28, 28), size, dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(size) % 2).astype(np.uint8).reshape(size, 1)
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.fixture
def remote(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> bytes:
    """The stand-in, declared official and served over a pretended network."""
    body = stand_in()
    table = cohortium_medmnist._table()
    entry = dict(table["breastmnist"]) | {"MD5": hashlib.md5(body).hexdigest()}
    monkeypatch.setattr(cohortium_medmnist, "_table", lambda: {"breastmnist": entry})
    serve(monkeypatch, io.BytesIO(body))
    return body


@pytest.mark.usefixtures("home")
def test_every_set_and_size_is_offered() -> None:
    table = cohortium_medmnist._table()
    assert set(ORIGINS) == set(table)
    assert len(ORIGINS) == 18
    for flag, entry in table.items():
        sizes = VOLUME_SIZES if flag.endswith("3d") else SIZES
        made = {int(key.removeprefix("MD5_")) for key in entry if key.startswith("MD5_")}
        assert made | {28} == set(sizes)


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("bloodminst", "MedMNIST has no set 'bloodminst'; let flag be one of adrenalmnist3d, "),
        ("bloodmnist3d", "MedMNIST has no set 'bloodmnist3d'"),
    ],
)
def test_unknown_sets_are_refused_at_construction(flag: str, sentence: str) -> None:
    with pytest.raises(StudyError, match=sentence):
        MedMNIST(flag=flag)


def test_other_sizes_are_refused() -> None:
    with pytest.raises(StudyError, match="no images of size 32; choose one of 28, 64, 128, 224"):
        MedMNIST(size=32)
    with pytest.raises(StudyError, match="no images of size 128; choose one of 28, 64"):
        MedMNIST(flag="vesselmnist3d", size=128)


@pytest.mark.parametrize("flag", sorted(ORIGINS))
def test_each_set_loads_and_scores_as_medmnist_does(
    flag: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = cohortium_medmnist._table()[flag]
    names, rng = len(entry["label"]), np.random.default_rng(0)
    axes = (28,) * (3 if flag.endswith("3d") else 2)
    shape = (*axes, *([entry["n_channels"]] if entry["n_channels"] > 1 else []))
    arrays: dict[str, Any] = {}
    for split, size in (("train", 40), ("val", 10), ("test", 30)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (size, *shape), dtype=np.uint8)
        several = rng.integers(0, 2, (size, names)) if "multi-label" in entry["task"] else None
        one = (np.arange(size) % names)[:, None]
        arrays[f"{split}_labels"] = (one if several is None else several).astype(np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    made_up = dict(entry) | {"MD5": hashlib.md5(buffer.getvalue()).hexdigest()}
    monkeypatch.setattr(cohortium_medmnist, "_table", lambda: {flag: made_up})
    (home / ".medmnist").mkdir(exist_ok=True)
    (home / ".medmnist" / f"{flag}.npz").write_bytes(buffer.getvalue())
    splits = MedMNIST(flag=flag, download=False).load()
    assert splits.spec.shape == (entry["n_channels"], *axes)
    assert splits.classes == tuple(entry["label"][str(k)] for k in range(names))
    assert splits.test is not None
    outputs = torch.from_numpy(rng.normal(size=(30, names)))
    predictions = splits.task.predict(outputs).numpy()
    scores = splits.task.score(predictions, splits.test.labels)
    given = predictions[:, -1] if entry["task"] == "binary-class" else predictions
    for name, oracle in (("auc", evaluator.getAUC), ("accuracy", evaluator.getACC)):
        expected = oracle(arrays["test_labels"], given, entry["task"])
        assert scores.metrics[name] == pytest.approx(expected, abs=1e-9)


def test_missing_file_without_network_error_names_remedy(home: Path, tmp_path: Path) -> None:
    root = tmp_path / "mine"
    with pytest.raises(DataError) as caught:
        MedMNIST(root=str(root), size=64).load()
    said = str(caught.value)
    assert said.startswith(f"bloodmnist_64.npz is not in {root} or {home / '.medmnist'}, and")
    assert "downloading it failed: <urlopen error no network>; get it from https://zenodo" in said
    assert said.endswith(f"put it in {root}.")
    assert list(root.iterdir()) == []


@pytest.mark.usefixtures("remote")
def test_download_disabled_fetches_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request.HTTPSHandler, "https_open", no_network)
    with pytest.raises(DataError, match=r"breastmnist\.npz is not in .*, and download is false"):
        MedMNIST(flag="breastmnist", download=False).load()
    assert not (home / ".medmnist" / "breastmnist.npz").exists()


def test_a_download_is_kept_and_not_repeated(
    remote: bytes, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = MedMNIST(flag="breastmnist").load()
    assert splits.name == "BreastMNIST 28×28"
    assert splits.classes == ("malignant", "normal, benign")
    assert "Yang et al." in splits.source
    assert "Al-Dhabyani" in splits.source
    assert splits.source.endswith("CC BY 4.0")
    kept = home / ".medmnist" / "breastmnist.npz"
    assert kept.read_bytes() == remote
    assert list(kept.parent.iterdir()) == [kept]
    monkeypatch.setattr(urllib.request.HTTPSHandler, "https_open", no_network)
    assert len(MedMNIST(flag="breastmnist").load().train) == 6


def test_folder_with_file_needs_no_network(
    remote: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urllib.request.HTTPSHandler, "https_open", no_network)
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "breastmnist.npz").write_bytes(remote)
    assert len(MedMNIST(flag="breastmnist", root=str(folder)).load().train) == 6
    monkeypatch.setenv("COHORTIUM_DATA", str(folder))
    assert len(MedMNIST(flag="breastmnist").load().train) == 6


def test_a_damaged_download_leaves_nothing(
    remote: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = io.BytesIO(remote[:-7])
    serve(monkeypatch, cut)
    with pytest.raises(DataError, match="does not have its published MD5"):
        MedMNIST(flag="breastmnist", root=str(tmp_path / "new" / "root")).load()
    assert list((tmp_path / "new" / "root").iterdir()) == []


def test_a_connection_lost_half_way_leaves_nothing(
    remote: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell():
                raise TimeoutError("timed out")
            return super().read(size and 100)

    serve(monkeypatch, Lost(remote))
    with pytest.raises(DataError, match="downloading it failed: timed out"):
        MedMNIST(flag="breastmnist", root=str(tmp_path)).load()
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


OTHER = "https://elsewhere.example/file"


@pytest.mark.parametrize(
    ("redirections", "sentence"),
    [
        ([OTHER] * 4, "redirects more than 3 times"),
        ([f"{OTHER}/{number}" for number in range(4)], "redirects more than 3 times"),
        (["http://elsewhere.example/file"], "redirects to one that is not an https one"),
        ([OTHER, "ftp://elsewhere.example/file"], "redirects to one that is not an https one"),
        (["file:///etc/passwd"], "is not allowed"),
    ],
)
def test_download_is_redirected_seldom_and_to_https_alone(
    redirections: list[str],
    sentence: str,
    remote: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(urllib.request.HTTPHandler, "http_open", no_network)
    monkeypatch.setattr(urllib.request.FTPHandler, "ftp_open", no_network)
    root = tmp_path / "root"
    serve(monkeypatch, io.BytesIO(remote), *redirections)
    with pytest.raises(DataError, match=f"downloading it failed: .*{sentence}"):
        MedMNIST(flag="breastmnist", root=str(root)).load()
    assert not list(root.iterdir())
    serve(monkeypatch, io.BytesIO(remote), *[f"{OTHER}/{number}" for number in range(3)])
    assert len(MedMNIST(flag="breastmnist", root=str(root)).load().train) == 6


def test_endless_download_is_broken_off(
    remote: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Endless(io.BytesIO):
        num_bytes = 0

        def read(self, size: int | None = -1, /) -> bytes:
            assert size is not None
            self.num_bytes += size
            return bytes(size)

    endless = Endless(remote)
    serve(monkeypatch, endless)
    with pytest.raises(DataError, match=r"more than [\d,]+ bytes came, and the file cannot have"):
        MedMNIST(flag="breastmnist", root=str(tmp_path / "root")).load()
    assert not list((tmp_path / "root").iterdir())
    assert endless.num_bytes < 4 << 20


@pytest.mark.usefixtures("remote")
def test_a_root_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"downloading it failed: .*File exists"):
        MedMNIST(flag="breastmnist", root=str(tmp_path / "file")).load()


@pytest.mark.usefixtures("home")
def test_unofficial_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bloodmnist.npz").write_bytes(stand_in())
    with pytest.raises(DataError, match=r"not the official file, whose MD5 is 7053d0359d879ad8"):
        MedMNIST(root=str(tmp_path)).load()


@pytest.mark.usefixtures("home")
def test_construction_imports_no_heavy_package() -> None:
    code = (
        "import sys; from cohortium_medmnist import MedMNIST, _table; MedMNIST(); _table()\n"
        "print([m for m in ('torch', 'pandas', 'sklearn', 'medmnist') if m in sys.modules])"
    )
    environ: dict[str, Any] = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.data
def test_official_pneumonia_images_load() -> None:
    if not os.environ.get("COHORTIUM_DATA"):
        pytest.skip("COHORTIUM_DATA names no folder of real images")
    splits = MedMNIST(flag="pneumoniamnist", download=False).load()
    assert splits.name == "PneumoniaMNIST 28×28"
    assert splits.train.images.shape == (4708, 1, 28, 28)
    assert splits.validation is not None
    assert splits.test is not None
    assert (len(splits.validation), len(splits.test)) == (524, 624)
    assert splits.classes == ("normal", "pneumonia")
    assert np.bincount(splits.train.labels).tolist() == [1214, 3494]
