"""`cohortium site --check`: the site's own data, looked at before anything leaves."""

from __future__ import annotations

import shutil
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cohortium.cli import main
from cohortium.errors import DataError, IdentityError, RequestError
from tests.support.command_line import cohortium

SITE = """
[site]
id = 0
dataset_id = "lesions"
[dataset]
name = "folder"
path = "lesions"
classes = ["benign", "malignant", "unclear"]
[policy]
epsilon = 6.0
unit = "example"
against = "everyone"
delta = 1e-4
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    for k in range(8):
        path = tmp_path / "lesions" / ("benign", "malignant")[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 5), 20 * k, np.uint8)).save(path)
    (tmp_path / "site.toml").write_text(SITE)
    cohortium("ledger", str(tmp_path / "site.toml"), "--create")
    return tmp_path / "site.toml"


def test_check_writes_a_page_next_to_the_ledger(site: Path) -> None:
    status, out, err = cohortium("site", str(site), "--check")
    assert status == 0
    assert "8 train" in out
    assert "data, keys, ledger and policy are in order" in err
    page = site.parent / "data.html"
    assert str(page) in out
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert page.read_text().count("<img ") == 8


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_site_process_leaves_no_core_dump(site: Path) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_CORE)
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
        assert cohortium("site", str(site), "--check")[0] == 0
        assert resource.getrlimit(resource.RLIMIT_CORE) == (0, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)


def test_check_compares_own_key_with_directory(site: Path) -> None:
    """A new key is of no use until the hospitals have pinned the directory that has it."""
    own, other = site.parent / "identity.pem", site.parent / "lost.pem"
    line = cohortium("keygen", "0", "--out", str(other))[1]
    (site.parent / "directory.txt").write_text(f"cohortium directory 1\n{line}")
    cohortium("keygen", "0", "--out", str(own))
    keys = 'signing_key = "identity.pem"\nkey_directory = "directory.txt"\n'
    site.write_text(SITE.replace("[dataset]", f"{keys}[dataset]"))
    with pytest.raises(IdentityError, match="the pinned directory gives that site the key"):
        cohortium("site", str(site), "--check")
    own.write_bytes(other.read_bytes())
    assert cohortium("site", str(site), "--check")[0] == 0


def test_check_names_every_refused_file(site: Path, tmp_path: Path) -> None:
    for k in range(3):
        (site.parent / "lesions" / "benign" / f"broken{k}.png").write_bytes(b"?")
    page = tmp_path / "page.html"
    with pytest.raises(DataError, match="its data cannot be used"):
        cohortium("site", str(site), "--check", "--page", str(page))
    assert page.read_text().count("is no PNG, JPEG or TIFF") == 3
    assert "name may hold the name of a patient" in page.read_text()
    assert not (site.parent / "data.html").exists()


def test_refused_files_are_named_on_page_alone(
    site: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (site.parent / "lesions" / "benign" / "jane-doe.png").write_bytes(b"?")
    caplog.set_level(0)
    with pytest.raises(SystemExit) as caught:
        main(["site", str(site), "--check"])
    printed = capfd.readouterr()
    assert caught.value.code
    assert "refused  1 file" in printed.out
    assert "correct the faults that" in printed.err
    for text in (printed.out, printed.err, caplog.text):
        assert "jane" not in text
    assert (site.parent / "data.html").read_text().count("jane-doe.png") == 1


def with_test(site: Path, first: int, account: str = "lesions, test") -> Path:
    for k in range(4):
        path = site.parent / "tests" / ("benign", "malignant")[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 5), first + k, np.uint8)).save(path)
    site.write_text(
        SITE + f'[test]\ndataset_id = "{account}"\n[test.dataset]\nname = "folder"\n'
        'path = "tests"\nclasses = ["benign", "malignant", "unclear"]\n'
    )
    return site.parent / "data.html"


def test_check_shows_test_images_and_their_comparison(site: Path) -> None:
    page = with_test(site, 201)
    status, out, _ = cohortium("site", str(site), "--check")
    assert status == 0
    assert "test images  4 (folder)" in out
    assert "No image is in both" in out
    text = page.read_text()
    assert text.count("<img ") == 12
    assert "4 images of 4 for tests" in text
    assert 'id="test-counts"' in text
    assert "No image is in both, and patients were not compared" in text


def test_check_reports_overlap_on_page(site: Path) -> None:
    page = with_test(site, 20)
    with pytest.raises(DataError, match="its data cannot be used"):
        cohortium("site", str(site), "--check")
    assert "1 of the 4 test images are training images too" in page.read_text()
    with_test(site, 20, "lesions")
    assert cohortium("site", str(site), "--check")[0] == 0
    assert "they may overlap" in page.read_text()


def test_check_shows_test_images_of_dataset(site: Path) -> None:
    folder = site.parent / "lesions"
    for part, names in (("train", ("benign", "malignant")), ("test", ("benign",))):
        for name in names:
            path = folder / part / name / "x.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            value = len(part) * 9 + len(name)
            Image.fromarray(np.full((6, 5), value, np.uint8)).save(path)
    for name in ("benign", "malignant"):
        shutil.rmtree(folder / name)
    site.write_text(SITE + '[test]\ndataset_id = "lesions, test"\n')
    status, out, _ = cohortium("site", str(site), "--check")
    assert status == 0
    assert "test images  1 (folder)" in out
    assert "No image is in both" in (site.parent / "data.html").read_text()


def test_refused_test_file_is_on_page(site: Path) -> None:
    page = with_test(site, 201)
    (site.parent / "tests" / "benign" / "broken.png").write_bytes(b"?")
    with pytest.raises(DataError, match="its data cannot be used"):
        cohortium("site", str(site), "--check")
    text = page.read_text()
    assert "Refused test files" in text
    assert "Refused files are not compared" in text
    code, _, err = cohortium("data", str(site), "--out", str(page))
    assert code == 1
    assert "broken.png" in err


def test_page_is_for_check_alone(site: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="--page is the page of --check"):
        cohortium("site", str(site), "--page", str(tmp_path / "page.html"))


def test_data_command_reads_a_site_file(site: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    status, out, _ = cohortium("data", str(site), "--out", str(page))
    assert status == 0
    assert "3 (benign, malignant, unclear)" in out
    with pytest.raises(RequestError, match="change the keys of the site file"):
        cohortium("data", str(site), "--set", "dataset.path=x", "--out", str(page))
