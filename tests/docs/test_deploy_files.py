"""The files of docs/deploy fit one another."""

from __future__ import annotations

import configparser
from pathlib import Path

from attrs import fields

from cohortium.deployment.site_config import SiteConfig
from cohortium.study import toml

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy"

WRITTEN = {
    "ledger", "journal", "state_dir", "runs_dir", "evaluations_dir", "socket", "trail",
    "approvals_dir",
}  # fmt: skip
"""What a site writes, of the paths in its file."""


def unit() -> configparser.SectionProxy:
    """What systemd is told of the service."""
    file = configparser.ConfigParser(strict=False, interpolation=None)
    file.optionxform = str  # type: ignore[assignment, method-assign]
    file.read(DEPLOY / "cohortium-site.service")
    return file["Service"]


def test_site_output_paths_lie_in_writable_directories() -> None:
    service = unit()
    assert service["ProtectSystem"] == "strict"
    may = [
        Path("/var/lib") / service["StateDirectory"],
        Path("/run") / service["RuntimeDirectory"],
    ]
    site = toml.read(DEPLOY / "site.toml", what="the site file")["site"]
    assert {each.name for each in fields(SiteConfig)} >= WRITTEN
    for key in WRITTEN:
        assert Path(site.get(key, "")).parent in may, f"{key} of site.toml is in no such folder"


def test_socket_directory_is_limited_to_caller_group() -> None:
    service = unit()
    assert int(service["RuntimeDirectoryMode"], 8) == 0o750
    site = toml.read(DEPLOY / "site.toml", what="the site file")["site"]
    assert Path(site["socket"]).parent == Path("/run") / service["RuntimeDirectory"]
    # Its group is the one that the caller is in, and no group of the site's own.
    assert service["Group"] != service["User"]
    assert site["client_user"]
