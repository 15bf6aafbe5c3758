"""The program that type checkers read covers what is public, and pyright is content with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import cohortium
from cohortium import discover
from cohortium.roles import ROLES
from tests.typing import public_api

ROOT = Path(__file__).parents[2]


def test_typing_sample_covers_every_builtin_plugin() -> None:
    for role in ROLES:
        ours = {
            offering.offer.factory
            for offering in discover().entries
            if offering.role == role and offering.record.distribution == "cohortium"
        }
        assert {type(part) for part in getattr(public_api, f"{role.upper()}S")} == ours


def test_typing_sample_covers_every_public_name() -> None:
    text = Path(public_api.__file__).read_text("utf-8")
    assert [name for name in cohortium.__all__ if name not in text] == []


@pytest.mark.slow
def test_pyright_reports_no_error() -> None:
    """`[tool.basedpyright]` says what it reads."""
    pytest.importorskip("basedpyright")
    done = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "0 errors, 0 warnings" in done.stdout
