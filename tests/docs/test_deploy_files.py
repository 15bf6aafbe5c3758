"""The files of docs/deploy fit one another."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from attrs import fields

from cohortium.deployment.site_config import SiteConfig
from cohortium.study import toml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "docs" / "deploy"

WRITTEN = {
    "ledger", "journal", "state_dir", "runs_dir", "evaluations_dir", "socket", "trail",
    "approvals_dir",
}  # fmt: skip
"""What a site writes, of the paths in its file."""


def unit(name: str = "cohortium-site") -> configparser.SectionProxy:
    """What systemd is told of a service."""
    file = configparser.ConfigParser(strict=False, interpolation=None)
    file.optionxform = str  # type: ignore[assignment, method-assign]
    file.read(DEPLOY / f"{name}.service")
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


def containerfile() -> dict[str, list[tuple[str, str]]]:
    """The instructions of each stage, by its name."""
    stages: dict[str, list[tuple[str, str]]] = {}
    for line in (DEPLOY / "Containerfile").read_text("utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            stages[name] = list(stages.get(base, []))
        else:
            stages[name].append((instruction, rest))
    return stages


def test_container_copies_what_the_sources_have_and_installs_as_the_readme_does() -> None:
    steps = containerfile()["installed"]
    copied = [path for instruction, rest in steps if instruction == "COPY" for path in rest.split()]
    assert {path for path in copied if not (ROOT / path).exists()} <= {"./"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    needed = {"pyproject.toml", "constraints.txt", project["project"]["readme"], "core", "plugins"}
    assert needed <= set(copied)
    installs = [rest for instruction, rest in steps if " install " in rest and instruction == "RUN"]
    assert all("-c constraints.txt" in each for each in installs)
    (ours,) = (each for each in installs if each.endswith('".[flower]"'))
    assert "flower" in project["project"]["optional-dependencies"]
    assert ours.startswith("/usr/local/lib/cohortium/bin/pip")


def test_no_container_runs_as_root() -> None:
    for target in ("site", "coordinator"):
        users = [rest for instruction, rest in containerfile()[target] if instruction == "USER"]
        assert users
        assert all(int(user.partition(":")[0]) > 0 for user in users)


def test_containers_run_the_commands_of_the_units() -> None:
    for target, name in (("site", "cohortium-site"), ("coordinator", "flower-superlink")):
        steps = dict(containerfile()[target])
        said = [*json.loads(steps["ENTRYPOINT"]), *json.loads(steps.get("CMD", "[]"))]
        wanted = shlex.split(unit(name)["ExecStart"].replace("\\\n", " "))
        assert sorted(said) == sorted([Path(wanted[0]).name, *wanted[1:]])


def test_mounted_folders_are_those_of_the_site_file() -> None:
    page = (ROOT / "docs" / "containers.md").read_text("utf-8")
    mounted = {Path(place) for place in re.findall(r"-v \S+?:(/\S+?)(?::ro)?(?=\s)", page)}
    site = toml.read(DEPLOY / "site.toml", what="the site file")
    paths = [site["site"][key] for key in (*WRITTEN, "signing_key", "key_directory")]
    for path in (*paths, site["dataset"]["path"]):
        assert mounted & set(Path(path).parents), path
    assert not [
        place
        for place in re.findall(r"-v \S+?:(/\S+?):ro", page)
        if any(Path(place) in Path(site["site"][key]).parents for key in WRITTEN)
    ]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for file in DEPLOY.glob("*.service"):
        text = file.read_text("utf-8").replace("/usr/local/lib/cohortium/bin/", "/bin/true ")
        (tmp_path / file.name).write_text(text, "utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, sorted(tmp_path.glob("*.service")))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip()
