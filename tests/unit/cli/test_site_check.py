"""`cohortium site --check`: the site's own data, looked at before anything leaves."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cohortium.errors import DataError, RequestError
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


def test_check_names_every_refused_file(site: Path, tmp_path: Path) -> None:
    for k in range(3):
        (site.parent / "lesions" / "benign" / f"broken{k}.png").write_bytes(b"?")
    page = tmp_path / "page.html"
    with pytest.raises(DataError, match="its data cannot be used"):
        cohortium("site", str(site), "--check", "--page", str(page))
    assert page.read_text().count("is no PNG, JPEG or TIFF") == 3
    assert not (site.parent / "data.html").exists()


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
