"""The files of docs/deploy fit one another."""

from __future__ import annotations

import configparser
from pathlib import Path

from attrs import fields

from cohortium.deployment.site_config import Hospital
from cohortium.study import toml

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy"

WRITTEN = {"ledger", "journal", "states", "runs", "socket"}
"""What a site writes, of the paths in its file."""


def test_what_a_site_writes_lies_where_its_unit_may_write() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(DEPLOY / "cohortium-site.service")
    service = unit["Service"]
    assert service["ProtectSystem"] == "strict"
    may = [
        Path("/var/lib") / service["StateDirectory"],
        Path("/run") / service["RuntimeDirectory"],
    ]
    site = toml.read(DEPLOY / "site.toml", what="the site file")["site"]
    assert {each.name for each in fields(Hospital)} >= WRITTEN
    for key in WRITTEN:
        assert Path(site.get(key, "")).parent in may, f"{key} of site.toml is in no such folder"
