"""What every test may ask for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("long", max_examples=5_000)  # for state machines: minutes to an hour


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
    monkeypatch.delenv("COHORTIUM_BLOCK", raising=False)
    monkeypatch.delenv("COHORTIUM_ONLY", raising=False)
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def data_root() -> Path:
    """The folder with real images; the test is skipped without one."""
    root = os.environ.get("COHORTIUM_DATA")
    if not root:
        pytest.skip("COHORTIUM_DATA names no folder with real images")
    return Path(root)
