"""Every code block of the README and the docs is run."""

from __future__ import annotations

import doctest
import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import typer.main
from attrs import evolve
from typer.testing import CliRunner

from cohortium import Federation, discover, grid, tuning
from cohortium.catalog.allow_list import parse_patterns
from cohortium.cli import app
from cohortium.crypto.randomness import Randomness
from cohortium.crypto.signing import KeyDirectory, SigningKey
from cohortium.deployment.site_config import SiteConfig
from cohortium.inference.shared.parties import Parties
from cohortium.roles import ROLES, hooks
from cohortium.study import study_file

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
FOLLOWED = {ROOT / "docs" / name for name in ("tutorial.md", "tutorial-dicom.md")}
"""Their blocks are files of one folder, which tests of their own write down and use."""
SMALL = {"name": "phantom", "examples": 600, "validation": 100, "test": 100}
"""Images of a block that names none."""

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)

SLOW = re.compile(
    r"\.run\(|\b(?:import|from) torch\b|cohortium_mlp import|^\[(?:trainer|privatizer)\]",
    re.MULTILINE,
)
"""Marks of a block that runs a study, or imports torch in a process of its own."""


def blocks(language: str) -> list[object]:
    found: list[object] = []
    for page in PAGES:
        if page in FOLLOWED:
            continue
        for number, match in enumerate(BLOCK.finditer(page.read_text("utf-8"))):
            if match[1] == language:
                marks = [pytest.mark.slow] if SLOW.search(match[2]) else []
                name = f"{page.relative_to(ROOT)}-{number}"
                found.append(pytest.param(match[2], id=name, marks=marks))
    return found


@pytest.mark.parametrize("code", blocks("python"))
def test_python_runs(code: str, tmp_path: Path) -> None:
    if "cohortium_mlp import" in code:
        # A test of the plugin that the page begins with.
        page = (ROOT / "docs" / "plugins.md").read_text("utf-8")
        plugin = next(block[2] for block in BLOCK.finditer(page) if block[1] == "python")
        (tmp_path / "cohortium_mlp.py").write_text(plugin)
        (tmp_path / "test_block.py").write_text(code)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    else:
        (tmp_path / "block.py").write_text(code)
        command = [sys.executable, "-W", "error::UserWarning", "block.py"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        # This checkout, wherever the installed package lies.
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT / 'core'}:{ROOT / 'plugins'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("text", blocks("toml"))
def test_toml_block_is_package_site_or_study(text: str, tmp_path: Path) -> None:
    tables = tomllib.loads(text)
    if "policy" in tables:
        key = SigningKey.generate(Randomness.insecure_from_seed(1)).public
        KeyDirectory((key,)).write(tmp_path / tables["site"]["key_directory"])
        (tmp_path / "site.toml").write_text(text)
        site_config = SiteConfig.read(tmp_path / "site.toml")
        assert site_config.id == tables["site"]["id"]
        records = discover().records
        for entry in parse_patterns(site_config.policy.allowed_plugins, where="here"):
            assert any(entry.allows(r.distribution, r.name, r.version) for r in records), entry
        return
    if "project" in tables:
        assert tables["project"]["entry-points"]["cohortium"]
        return
    if "clinic" in tables:
        (tmp_path / "parties.toml").write_text(text)
        assert Parties.read(tmp_path / "parties.toml", "helper").addresses == tables
        return
    if "tune" in tables:
        (tmp_path / "study.toml").write_text(text)
        federation, found = tuning.read(tmp_path / "study.toml")
        assert tuning.plan_tuning(federation, found).prices[0].together <= 6.0
        return
    if "grid" in tables:
        (tmp_path / "grid.toml").write_text(text)
        assert grid.read(tmp_path / "grid.toml").cells()
        return
    base = study_file.quick_start()
    if "dataset" not in tables:
        base["dataset"] = SMALL
    federation = study_file.build(study_file.merge(base, tables, where="the docs"), into=Federation)
    assert federation.prepare().run_config.plan.guarantee is not None
    # Another round shows nothing that two do not.
    assert evolve(federation, rounds=2).run().guarantee is not None


def commands() -> list[object]:
    """Every `cohortium` command line in the pages, in blocks and in running text."""
    known = "|".join(typer.main.get_group(app).commands)
    pattern = re.compile(rf"(?:^|[`/ ])(cohortium (?:{known})\b[^`\n;]*)", re.MULTILINE)
    lines = set()
    for page in PAGES:
        for match in pattern.finditer(page.read_text("utf-8").replace("\\\n", " ")):
            lines.add(match[1].split("  #")[0].strip())
    return [pytest.param(line, id=line) for line in sorted(lines)]


@pytest.mark.parametrize("line", commands())
def test_documented_commands_have_valid_options(line: str, tmp_path: Path) -> None:
    """Options exist, and settings name real plugins and keys; whole runs are other tests'."""
    words = shlex.split(line)[1:]
    result = CliRunner().invoke(app, [words[0], "--help"])
    assert result.exit_code == 0
    options = {word for word in words[1:] if word.startswith("--")}
    assert all(option in result.output for option in options), result.output
    if words[0] not in ("run", "plan", "audit", "attack") or any(
        name in line for name in ("mlp", "my-model")
    ):
        return
    path = None
    if "paper.toml" in words:
        path = tmp_path / "paper.toml"
        readme = (ROOT / "README.md").read_text("utf-8")
        path.write_text(next(m[2] for m in BLOCK.finditer(readme) if m[1] == "toml"))
    changes = [b for a, b in pairwise(words) if a == "--set"]
    if len(words) > 1 and words[1].startswith("docs/"):
        path = ROOT / words[1]
        if grid.is_grid(path):
            chosen = [b for a, b in pairwise(words) if a == "--only"]
            assert grid.read(path, changes).select(chosen)
            return
    Federation.read(path, changes)


DOCTESTED = [
    "messages.codec",
    "crypto.randomness",
    "ring.ring",
    "roles.hooks",
    "learning.optimizers",
    "catalog.parameters",
    "data.pseudonyms",
    "scaffold.study_template",
    "text",
]


@pytest.mark.parametrize("name", DOCTESTED)
def test_examples_in_docstrings_hold(name: str) -> None:
    module = importlib.import_module(f"cohortium.{name}")
    outcome = doctest.testmod(module)
    assert outcome.attempted
    assert not outcome.failed


def test_every_hook_is_in_the_docs() -> None:
    page = (ROOT / "docs" / "plugins.md").read_text("utf-8")
    for role in ROLES:
        assert f"`{hooks.hook_name(role)}`" in page
        assert f"`{role.capitalize()}`" in page


def test_links_between_pages_resolve() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_comparison_table_cells_have_footnotes() -> None:
    text = (ROOT / "docs" / "comparison.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    cells = [cell for row in rows for cell in row.strip("|").split("|")[1:] if row[2] != "|"]
    assert cells
    assert [cell for cell in cells if not re.search(r"\[\^[cfp]-\w+\] $", cell)] == []
    notes = dict(re.findall(r"^\[\^([\w-]+)\]: (.*)$", text, re.MULTILINE))
    assert set(re.findall(r"\[\^([\w-]+)\](?!:)", text)) == set(notes)
    for name, note in notes.items():
        for path in re.findall(r"`((?:core|plugins|tests)/[^`]+)`", note if name[0] == "c" else ""):
            assert (ROOT / path).exists(), path
