"""`cohortium new-plugin`: what it writes is whole and in good form, and what it cannot it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium import discover, scaffold
from cohortium.cli import main
from cohortium.errors import PluginError
from cohortium.roles import ROLES, Role
from cohortium.roles.hooks import hook_name
from tests.support.clean_environment import Python, clean_python

CATALOG = discover()

CHECK = """
import sys
from cohortium.cli import main
for name in sys.argv[1:]:
    try:
        main(["check", name])
    except SystemExit as stop:
        assert stop.code == 0, name
"""
"""`cohortium check` of several plugins: torch is imported once."""

STUDY = """
[federation]
sites = 3
rounds = 24
evaluate_every = 6
[dataset]
name = "my-dataset"
[partitioner]
name = "my-partitioner"
[model]
name = "my-model"
[trainer]
name = "my-trainer"
learning_rate = 0.5
[privatizer]
name = "my-privatizer"
[aggregator]
name = "my-aggregator"
[engine]
name = "my-engine"
"""


def command(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as stop:
        main(["new-plugin", *arguments])
    return stop.value.code


@pytest.mark.parametrize("role", ROLES)
def test_new_plugin_writes_package(role: Role, tmp_path: Path, capsys: Any) -> None:
    assert command("my-part", "--role", role, "--out", str(tmp_path / "deep")) == 0
    folder = tmp_path / "deep" / "cohortium-my-part"
    assert str(folder) in capsys.readouterr().out
    module = (folder / "src" / "cohortium_my_part" / "__init__.py").read_text("utf-8")
    assert f"def {hook_name(role)}(" in module
    assert (folder / "src" / "cohortium_my_part" / "py.typed").exists()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["cohortium-my-part"]


@pytest.mark.parametrize(
    ("name", "role", "sentence"),
    [
        ("Mine", "model", "lower-case letters"),
        ("my_part", "model", "lower-case letters"),
        ("a--b", "model", "single hyphens"),
        ("a" * 31, "model", "at most 30"),
        ("../mine", "model", "lower-case letters"),
        ("mine", "agregator", "did you mean aggregator?"),
        ("mine", "seamstress", "there are aggregator"),
        ("cohortium-mine", "model", "leave out 'cohortium'"),
        ("gaussian", "model", "gaussian (cohortium"),
        ("quantity-pairs", "partitioner", "offers that partitioner"),
        ("data-spec", "model", "DataSpec, which means something else"),
        ("value-error", "engine", "ValueError, which means something else"),
        ("none-type", "model", ""),
    ],
)
def test_invalid_plugin_name_or_role_is_refused(
    name: str, role: str, sentence: str, tmp_path: Path, capsys: Any
) -> None:
    code = command(name, "--role", role, "--out", str(tmp_path))
    said = capsys.readouterr().err
    if not sentence:  # a name that only looks taken
        assert code == 0
        return
    assert code == 2
    assert sentence in said
    assert "\n" not in said.strip()
    assert list(tmp_path.iterdir()) == []


def test_new_plugin_overwrites_nothing(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "cohortium-mine").mkdir()
    assert command("mine", "--role", "model", "--out", str(tmp_path)) == 2
    assert "exists already" in capsys.readouterr().err
    assert list((tmp_path / "cohortium-mine").iterdir()) == []
    (tmp_path / "file").write_text("")
    assert command("mine", "--role", "model", "--out", str(tmp_path / "file")) == 2
    assert "cannot write" in capsys.readouterr().err


@settings(max_examples=40, deadline=None)
@given(st.from_regex(scaffold.FORM, fullmatch=True), st.sampled_from(ROLES))
def test_any_name_is_refused_or_gives_python(name: str, role: Role) -> None:
    try:
        skeleton = scaffold.plan(name, role, CATALOG)
    except PluginError:
        return
    for path, text in skeleton.files().items():
        if path.endswith(".py"):
            names: dict[str, Any] = {}
            compile(text, path, "exec")
            if path.endswith("__init__.py"):
                exec(text, names)
                (offer,) = names[hook_name(role)]()
                assert offer.name == name
                assert offer.factory is names[skeleton.kind]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Python:
    """A clean environment with a new plugin for every role installed in it."""
    workload = tmp_path_factory.mktemp("author")
    for role in ROLES:
        scaffold.plan(f"my-{role}", role, CATALOG).write(workload)
    found = clean_python(workload)
    found.install(*(workload / f"cohortium-my-{role}" for role in ROLES))
    return found


@pytest.mark.slow
def test_generated_plugins_are_discovered(python: Python) -> None:
    records = json.loads(python.cohortium("plugins", "--json"))
    found = {record["name"]: record for record in records if record["name"].startswith("my-")}
    assert sorted(found) == sorted(f"my-{role}" for role in ROLES)
    for role in ROLES:
        record = found[f"my-{role}"]
        assert record["status"] == "active", record
        assert [offer["role"] for offer in record["offers"]] == [role]


@pytest.mark.slow
def test_generated_plugins_pass_conformance_check(python: Python) -> None:
    said = python("-c", CHECK, *(f"my-{role}" for role in ROLES))
    assert "✗" not in said
    assert [f"{role} 'my-{role}' of" in said for role in ROLES] == [True] * len(ROLES)


@pytest.mark.slow
def test_generated_plugins_pass_their_tests(python: Python) -> None:
    options = ("-q", "-p", "no:cacheprovider", "--import-mode=importlib")
    said = python("-m", "pytest", *options, *(f"cohortium-my-{role}" for role in ROLES))
    assert " passed" in said
    assert "skipped" not in said


@pytest.mark.slow
def test_study_of_generated_plugins_learns(python: Python) -> None:
    (python.workload / "study.toml").write_text(STUDY, encoding="utf-8")
    options = ("--out", "record", "--observer", "my-observer", "--json")
    result = json.loads(python.cohortium("run", "study.toml", *options))
    assert result["accuracy"] > 0.6  # of four classes
    rows = (python.workload / "record" / "my-observer.csv").read_text("utf-8").splitlines()
    assert rows[0] == "round,sites,epsilon,accuracy"
    assert len(rows) == 1 + 24


@pytest.mark.slow
def test_generated_plugins_pass_linters(python: Python) -> None:
    folders = [python.workload / f"cohortium-my-{role}" for role in ROLES]
    for tool in (["ruff", "check"], ["ruff", "format", "--check"]):
        python("-m", *tool, *map(str, folders))
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "mypy",
                "--strict",
                "--cache-dir",
                str(python.workload / "mypy"),
            ),
            *("--python-executable", str(python.path)),
            *(str(folder / "src") for folder in folders),
            *(str(folder / "tests") for folder in folders),
        ],
        cwd=python.workload,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
