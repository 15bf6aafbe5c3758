from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Protocol

import pytest

from cohortium import discover
from cohortium.catalog.discovery import PluginRecord
from cohortium.errors import PluginError

GOOD = """
    from attrs import frozen
    from cohortium.plugin import Offer, hookimpl
    COHORTIUM_API = 1

    @frozen
    class Even:
        def partition(self, examples, num_sites, rng):
            return []

    @hookimpl
    def cohortium_partitioners():
        return [Offer("{name}", Even, "Every other one.")]
"""


class Install(Protocol):
    def __call__(self, distribution: str, **modules: str) -> None: ...


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a distribution whose plugins are `modules` (name: source) on the path."""
    monkeypatch.syspath_prepend(tmp_path)

    def put(distribution: str, **modules: str) -> None:
        info = tmp_path / f"{distribution.replace('-', '_')}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n"
        )
        lines = [f"{name} = module_{distribution.replace('-', '_')}_{name}" for name in modules]
        (info / "entry_points.txt").write_text("[cohortium]\n" + "\n".join(lines))
        for name, source in modules.items():
            module = f"module_{distribution.replace('-', '_')}_{name}"
            (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
            sys.modules.pop(module, None)

    return put


def record_of(name: str, environ: dict[str, str] | None = None) -> PluginRecord:
    return next(r for r in discover(environ or {}).records if r.name == name)


def test_third_party_plugin_is_discovered(install: Install) -> None:
    install("acme-split", even=GOOD.format(name="even"))
    catalog = discover({})
    record = record_of("even")
    assert (record.status, record.distribution, record.version) == ("active", "acme-split", "1.5")
    assert catalog.find("partitioner", "even").summary == "Every other one."
    assert "iid" in catalog.names("partitioner")


def test_discovery_is_made_once_for_one_state(install: Install, tmp_path: Path) -> None:
    before = discover({})
    assert discover({}) is before
    assert discover({"COHORTIUM_PLUGIN_BLOCK": "cohortium:iid"}) is not before
    install("acme-late", late=GOOD.format(name="late"))
    after = discover({})
    assert "late" not in before.names("partitioner")
    assert "late" in after.names("partitioner")
    assert discover({}) is after
    for path in sorted((tmp_path / "acme_late-1.5.dist-info").iterdir()):
        path.unlink()
    (tmp_path / "acme_late-1.5.dist-info").rmdir()
    assert "late" not in discover({}).names("partitioner")


@pytest.mark.parametrize(
    ("source", "status", "words"),
    [
        ("raise RuntimeError('no licence')", "broken", "RuntimeError: no licence"),
        ("import sys; sys.exit(3)", "broken", "SystemExit: 3"),
        ("import no_such_module_at_all", "broken", "no_such_module_at_all"),
        ("def f(:", "broken", "SyntaxError"),
        ("x = 1", "incompatible", "states no COHORTIUM_API"),
        ("COHORTIUM_API = 2", "incompatible", "is for API 2"),
        ("COHORTIUM_API = 1", "broken", "offers nothing"),
        (GOOD.format(name="even").replace("partitioners", "partitioner"), "broken",
         "no hook 'cohortium_partitioner'; did you mean cohortium_partitioners?"),
        (GOOD.format(name="even").replace("s():", "s(surplus):"), "broken", "surplus"),
        (GOOD.format(name="Even One"), "broken", "lower-case"),
        (GOOD.format(name="even").replace('Offer("even", Even, "Every other one.")', "Even"),
         "broken", "not an Offer"),
        (GOOD.format(name="even").replace("]\n", "] * 2\n"), "broken", "twice"),
        (GOOD.format(name="even").replace("return [O", "raise KeyError(1); return [O"),
         "broken", "KeyError"),
    ],
)  # fmt: skip
def test_broken_plugin_leaves_others_active(
    install: Install, source: str, status: str, words: str
) -> None:
    install("acme-bad", odd=source)
    record = record_of("odd")
    assert record.status == status
    assert words in record.reason
    others = [r for r in discover({}).records if r.name != "odd"]
    assert all(r.status == "active" for r in others), others


def test_duplicate_offer_error_lists_both(install: Install) -> None:
    install("acme-noise", noise=GOOD.format(name="dirichlet"))
    catalog = discover({})
    assert record_of("noise").status == "conflict"
    assert record_of("dirichlet").status == "conflict"
    with pytest.raises(PluginError, match=r"acme-noise 1\.5.*COHORTIUM_PLUGIN_BLOCK") as error:
        catalog.find("partitioner", "dirichlet")
    assert "(cohortium 0" in str(error.value)
    kept = discover({"COHORTIUM_PLUGIN_BLOCK": "acme-noise"})
    assert kept.find("partitioner", "dirichlet").factory.__name__ == "Dirichlet"


@pytest.mark.parametrize("name", ["even", "acme-split"])
def test_a_blocked_plugin_is_never_imported(install: Install, name: str) -> None:
    install("acme-split", even="raise SystemExit('imported')")
    record = record_of("even", {"COHORTIUM_PLUGIN_BLOCK": f"other, {name}"})
    assert (record.status, record.reason) == ("blocked", "COHORTIUM_PLUGIN_BLOCK names it.")


def test_an_allow_list_applies_before_import(install: Install) -> None:
    install("acme-split", even="raise SystemExit('imported')")
    catalog = discover({"COHORTIUM_PLUGIN_ALLOW": "cohortium"})
    assert {r.name for r in catalog.records if r.status == "blocked"} == {"even"}
    assert catalog.names("partitioner")
    only = discover({"COHORTIUM_PLUGIN_ALLOW": "iid"})
    assert [o.offer.name for o in only.entries] == ["iid"]


def test_failed_lookup_quotes_plugin_error(install: Install) -> None:
    install("acme-bad", odd="raise RuntimeError('no licence')")
    with pytest.raises(PluginError, match="broken: RuntimeError: no licence"):
        discover({}).find("model", "odd")


def test_a_failed_lookup_offers_near_names() -> None:
    with pytest.raises(PluginError, match="did you mean 'dpresnet'"):
        discover({}).find("model", "dpresnt")
    with pytest.raises(PluginError, match="there are backbone, cnn, "):
        discover({}).find("model", "zzz")


def test_plugins_command_fails_on_unusable_plugin(install: Install, tmp_path: Path) -> None:
    install("acme-bad", odd="raise RuntimeError('no licence')")
    done = subprocess.run(
        [sys.executable, "-m", "cohortium", "plugins", "--json"],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 1
    records = {record["name"]: record for record in json.loads(done.stdout)}
    assert records["odd"]["reason"] == "RuntimeError: no licence"
    assert records["iid"]["offers"][0]["role"] == "partitioner"
