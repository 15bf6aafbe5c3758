"""`cohortium attack`: a page of reconstructions, and scores as JSON."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from PIL import Image

from cohortium.errors import RequestError
from tests.support.command_line import cohortium

TINY = [
    *("--set", "federation.sites=3", "--set", "dataset.examples=24"),
    *("--set", "dataset.validation=0", "--set", "dataset.test=64"),
    *("--set", "partitioner.name=iid", "--set", "aggregator.name=plain"),
    *("--set", "privatizer.name=none", "--steps", "2"),
]


def test_attack_writes_a_page_and_scores(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    status, out, err = cohortium("attack", *TINY, "--json", "--out", str(page))
    assert "Traceback" not in err
    found = json.loads(out)
    assert found["images"] == "made-up"
    assert [each["release"] for each in found["releases"]] == ["bare", "summed", "seen"]
    assert found["releases"][0]["found"]
    assert found["releases"][0]["score"] > 0.99
    is_open = found["releases"][2]["found"]
    assert status == int(is_open)
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert "All images are made up." in page.read_text()


def test_attack_warns_of_real_images(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    _, out, err = cohortium("attack", *TINY, "--images", "study", "--out", str(page))
    assert "the page will hold images of the study's data set" in err
    assert "This attack found the only image of one site" in out
    assert "holds images of patients" in page.read_text()


def test_attack_writes_strips_as_one_picture(tmp_path: Path) -> None:
    strips = tmp_path / "strips.png"
    status, _, err = cohortium("attack", *TINY, "--out", str(strips))
    assert status in (0, 1), err
    with Image.open(strips) as picture:
        assert picture.format == "PNG"
        assert picture.height == 3 * 84 + 2 * 14
    with pytest.raises(RequestError, match="exists already"):
        cohortium("attack", *TINY, "--out", str(strips))


def test_attack_keeps_other_files(tmp_path: Path) -> None:
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(RequestError, match="is no page of an attack; give another file with"):
        cohortium("attack", *TINY, "--out", str(tmp_path / "mine.html"))
    assert (tmp_path / "mine.html").read_text() == "mine"
