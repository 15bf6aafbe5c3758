"""The report in a real browser."""

from __future__ import annotations

import base64
import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from cohortium import reporting
from cohortium_gaussian import Gaussian
from cohortium_secagg import SecAgg
from tests.support.federations import FaultyEngine, tiny_federation
from tests.support.hostile_record import poison

pytestmark = pytest.mark.slow

# Every piece of text with its colour over what lies behind it, as WCAG 2.2 reckons contrast.
CONTRAST = """
const parse = (text) => {
  const [r, g, b, a] = text.match(/[\\d.]+/g).map(Number);
  return [r, g, b, a === undefined ? 1 : a];
};
const over = (top, below) => {
  const mix = (k) => top[k] * top[3] + below[k] * (1 - top[3]);
  return [mix(0), mix(1), mix(2), 1];
};
const light = (c) => {
  const part = (v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  return 0.2126 * part(c[0]) + 0.7152 * part(c[1]) + 0.0722 * part(c[2]);
};
const behind = (element) => {
  const layers = [];
  for (let e = element; e; e = e.parentElement) {
    layers.push(parse(getComputedStyle(e).backgroundColor));
  }
  return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
};
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
  if (['title', 'desc', 'style'].includes(element.tagName.toLowerCase())) continue;
  const style = getComputedStyle(element);
  const below = behind(element);
  const colour = over(parse(element.closest('svg') ? style.fill : style.color), below);
  const [a, b] = [light(colour), light(below)].sort((x, y) => y - x);
  found.push([(a + 0.05) / (b + 0.05), walker.currentNode.data.trim()]);
}
return found;
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A private run that lost answers, one that promises nothing, and both side by side."""
    root = tmp_path_factory.mktemp("pages")
    losing = FaultyEngine(
        lambda count, site, reply: None if (count, site) in ((2, 1), (7, 3)) else reply
    )
    tiny_federation(
        privatizer=Gaussian(unit="site"),
        aggregator=SecAgg(reconstruction_threshold=3),
        engine=losing,
        rounds=3,
    ).run(root / "private")
    tiny_federation(rounds=2).run(root / "open")
    poison(Path(shutil.copytree(root / "private", root / "hostile")))
    return {
        "hostile": reporting.write([root / "hostile"]),
        "private": reporting.write([root / "private"]),
        "open": reporting.write([root / "open"]),
        "both": reporting.write([root / "private", root / "open"], root / "both.html"),
    }


def show(browser: Any, page: Path, *, width: int = 1280, scheme: str = "light") -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(page.as_uri())


def opened(browser: Any) -> None:
    browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true })")


@pytest.mark.parametrize("name", ["private", "open", "both", "hostile"])
def test_report_renders_without_requests_or_console_messages(
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
    made = "return document.querySelectorAll('script, img, iframe, object, [onerror]').length"
    assert browser.execute_script(made) == 0
    # A page that could run anything would have shown a dialog, and every call would fail.
    assert browser.title


def test_displayed_numbers_match_result(browser: Any, pages: dict[str, Path]) -> None:
    result = json.loads((pages["private"].parent / "result.json").read_text())
    show(browser, pages["private"])

    def shown(place: str) -> tuple[float, str]:
        value, text = browser.execute_script(
            f"const e = document.querySelector('{place} data'); return [e.value, e.innerText]"
        )
        return float(value), text

    metrics = result["scores"]["metrics"]
    percents = {"#accuracy": "accuracy", "#metric-balanced_accuracy": "balanced_accuracy"}
    for place, key in percents.items():
        value, text = shown(place)
        assert value == metrics[key]
        assert float(text.rstrip("%").strip()) == pytest.approx(100 * value, abs=0.0501)
    known = metrics | {"calibration_error": result["calibration_error"]}
    decimals = {
        "#metric-auc": "auc", "#mean-auc": "auc", "#metric-mcc": "mcc", "#loss": "loss",
        "#calibration": "calibration_error",
    }  # fmt: skip
    for place, key in decimals.items():
        value, text = shown(place)
        assert value == known[key]
        assert float(text) == pytest.approx(value, abs=0.000501)
    assert shown("#epsilon")[0] == result["guarantee"]["epsilon"]
    assert shown("#seconds")[0] == result["seconds"]["total"]
    assert shown("#rounds") == (3, "3")
    assert shown("#sites") == (6, "6")
    rows = browser.execute_script(
        "return [...document.querySelectorAll('#confusion tbody tr')].map("
        "row => [...row.querySelectorAll('td')].map(cell => cell.innerText))"
    )
    counts = [[0 if n == "·" else int(n) for n in row] for row in rows]
    assert counts == result["scores"]["confusion"]
    assert browser.find_element("id", "weights").text == result["weights_sha256"]


@pytest.mark.parametrize(
    ("name", "width"), product(["private", "open", "both", "hostile"], [320, 390, 820])
)
def test_report_fits_screen_width(
    browser: Any, pages: dict[str, Path], name: str, width: int
) -> None:
    show(browser, pages[name], width=width)
    opened(browser)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(
    ("name", "scheme"), product(["private", "open", "both"], ["light", "dark"])
)
def test_text_contrast_meets_minimum_ratio(
    browser: Any, pages: dict[str, Path], name: str, scheme: str
) -> None:
    show(browser, pages[name], scheme=scheme)
    opened(browser)
    found = browser.execute_script(CONTRAST)
    assert len(found) > 100
    assert [entry for entry in found if entry[0] < 4.5] == []
    page = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    brightness = max(int(part) for part in page.removeprefix("rgb(").rstrip(")").split(","))
    assert brightness > 240 if scheme == "light" else brightness < 40


@pytest.mark.parametrize("name", ["private", "both"])
def test_every_plot_has_accessible_text(browser: Any, pages: dict[str, Path], name: str) -> None:
    show(browser, pages[name])
    plots = browser.execute_script(
        "return [...document.querySelectorAll('svg')].map(plot => [plot.getAttribute('role'), "
        "plot.getAttribute('aria-labelledby').split(' ').map("
        "id => document.getElementById(id).textContent.trim())])"
    )
    assert len(plots) >= 2
    for role, words in plots:
        assert role == "img"
        assert all(words)


def test_print_uses_dark_text_in_dark_scheme(browser: Any, pages: dict[str, Path]) -> None:
    show(browser, pages["private"], scheme="dark")
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]},
    )
    ink = browser.execute_script("return getComputedStyle(document.body).color")
    assert max(int(part) for part in ink.removeprefix("rgb(").rstrip(")").split(",")) < 64
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
