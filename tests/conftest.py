"""What every test may ask for."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# The same draws at each run, so that a failure is of the change that it stands beside;
# `--hypothesis-profile=explore` draws new ones.
# A deadline would fail on a busy machine.
settings.register_profile("repeatable", derandomize=True, max_examples=50, deadline=None)
settings.register_profile("explore", derandomize=False, deadline=None)
# For state machines: minutes to an hour.
settings.register_profile("long", max_examples=5_000, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Two workers for all tests that want them: to start some takes longer than such a test."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def _calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """One torch thread, so that tests side by side do not fight; and no plugin lists."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("COHORTIUM_PLUGIN_BLOCK", raising=False)
    monkeypatch.delenv("COHORTIUM_PLUGIN_ALLOW", raising=False)
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Have SIGINT raise KeyboardInterrupt, here and in new processes, even in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def data_root() -> Path:
    """The folder with real images; the test is skipped without one."""
    root = os.environ.get("COHORTIUM_DATA")
    if not root:
        pytest.skip("COHORTIUM_DATA names no folder with real images")
    return Path(root)


FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real browser with a profile of its own; the test is skipped without one."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as found:
        yield found
