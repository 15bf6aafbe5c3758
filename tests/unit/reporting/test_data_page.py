"""The page of a data set in a real browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cohortium import Federation
from cohortium.reporting.data_page import look, write_page
from cohortium_npz import Npz
from cohortium_segmentation import Segmentation
from tests.unit.reporting.test_report_page import CONTRAST, show

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A study with its partition, and volumes with masks of many odd names."""
    root = tmp_path_factory.mktemp("pages")
    small = ("dataset.examples=200", "dataset.validation=40", "dataset.test=40")
    study = Federation.read(None, settings=[*small, "federation.sites=5"])
    assert study.dataset is not None
    write_page(look(study.dataset, kind="phantom", study=study), root / "study.html")
    rng = np.random.default_rng(0)
    names = ["rest", *(f"<script>alert({k})</script>" + "w" * 60 for k in range(11))]
    np.savez(
        root / "x.npz",
        train_images=rng.integers(0, 4000, (9, 18, 30, 20), dtype=np.uint16),
        train_labels=rng.integers(0, 12, (9, 18, 30, 20), dtype=np.uint8),
        train_clients=np.arange(9) % 3,
        train_patients=np.arange(9) // 2,
        classes=np.array(names),
    )
    masks = Npz(path=str(root / "x.npz"), layout="volumes", task=Segmentation())
    write_page(look(masks, kind="npz"), root / "masks.html")
    return {name: root / f"{name}.html" for name in ("study", "masks")}


@pytest.mark.parametrize("name", ["study", "masks"])
def test_data_page_renders_without_requests(
    browser: Any, pages: dict[str, Path], name: str
) -> None:
    browser.get_log("performance")
    show(browser, pages[name])
    assert browser.get_log("browser") == []
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith("data:")] == [pages[name].as_uri()]
    made = "return document.querySelectorAll('script, iframe, object, [onerror]').length"
    assert browser.execute_script(made) == 0
    drawn = "return [...document.images].filter(i => i.complete && i.naturalWidth > 0).length"
    assert browser.execute_script(drawn) == (16 if name == "study" else 9)
    doubled = (
        "const i = [...document.querySelectorAll('[id]')].map(e => e.id); "
        "return i.length - new Set(i).size"
    )
    assert browser.execute_script(doubled) == 0


@pytest.mark.parametrize("name", ["study", "masks"])
@pytest.mark.parametrize("width", [320, 390, 820])
def test_data_page_fits_screen_width(
    browser: Any, pages: dict[str, Path], name: str, width: int
) -> None:
    show(browser, pages[name], width=width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("name", ["study", "masks"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_data_page_text_contrast_suffices(
    browser: Any, pages: dict[str, Path], name: str, scheme: str
) -> None:
    show(browser, pages[name], scheme=scheme)
    found = browser.execute_script(CONTRAST)
    assert len(found) > 50
    assert [entry for entry in found if entry[0] < 4.5] == []
