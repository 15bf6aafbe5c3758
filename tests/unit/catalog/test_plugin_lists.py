"""A list of plugins means a plugin of a distribution, and a version where it says so."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cohortium import discover
from cohortium.catalog.allow_list import PluginPattern, normalize_name
from cohortium.catalog.discovery import PluginRecord
from cohortium.deployment.site_policy import SitePolicy
from cohortium.errors import RequestError
from tests.support import broken_plugins

GOOD = broken_plugins.hook("return [Offer('gaussian', Even, 'Not that one.')]")
WATCHED = "import builtins\nbuiltins.acme_was_imported = True\n" + GOOD


def record(distribution: str, name: str, version: str = "1.2") -> PluginRecord:
    return PluginRecord(name=name, target="x", distribution=distribution, version=version)


@pytest.mark.parametrize(
    ("entry", "allowed", "refused"),
    [
        ("gaussian", [("cohortium", "gaussian")], [("acme", "gaussian"), ("gaussian", "other")]),
        ("cohortium:gaussian", [("Cohortium", "gaussian")], [("cohortium-x", "gaussian")]),
        ("cohortium", [("cohortium", "iid")], [("acme", "cohortium"), ("cohortium-x", "iid")]),
        ("acme", [], [("acme", "even"), ("acme", "acme")]),
        ("Acme.Split_x:toy", [("acme-split-x", "toy"), ("acme__split--X", "toy")], [("a", "toy")]),
        ("acme:*", [("ACME", "toy")], [("acme-x", "toy")]),
        ("acme:toy==1.2", [("acme", "toy")], [("acme", "toys")]),
        ("acme:toy==1.20", [], [("acme", "toy")]),
        ("gaussian==1.2", [("cohortium", "gaussian")], [("acme", "gaussian")]),
        ("cohortium==1.3", [], [("cohortium", "iid")]),
    ],
)  # fmt: skip
def test_policy_allows_only_matching_plugins(
    entry: str, allowed: list[tuple[str, str]], refused: list[tuple[str, str]]
) -> None:
    policy = SitePolicy(
        epsilon=1.0, delta=1e-5, unit="example", against="everyone", allowed_plugins=(entry,)
    )
    assert all(policy.allows(record(*own)) for own in allowed)
    assert not any(policy.allows(record(*own)) for own in refused)


@pytest.mark.parametrize("text", ["", "*", "a:b:c", "a:", ":b", "a>=1", "a b", "a==", "\x1b[2J:x"])
def test_invalid_plugin_pattern_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="names no plugin; write distribution:plugin") as error:
        PluginPattern.parse(text, where="here")
    assert str(error.value).isprintable()
    with pytest.raises(RequestError, match=r"\[policy\] allowed_plugins"):
        SitePolicy(
            epsilon=1.0, delta=1e-5, unit="example", against="everyone", allowed_plugins=(text,)
        )


@pytest.mark.parametrize("name", ["acme_split.x", "ACME-Split-X", "acme--split__x", "gauss_IAN"])
def test_blocked_name_matches_other_spellings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    broken_plugins.put(tmp_path, {"gauss-ian": "raise SystemExit('imported')"}, "Acme.split-x")
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = [
        r for r in discover({"COHORTIUM_PLUGIN_BLOCK": name}).records if r.status != "active"
    ]
    assert (found.name, found.status) == ("gauss-ian", "blocked")


@pytest.mark.parametrize(
    "only", ["gaussian", "cohortium", "cohortium:*", "cohortium:gaussian", "acme:gaussian==1.4"]
)
def test_foreign_plugin_with_allowed_name_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only: str
) -> None:
    broken_plugins.put(tmp_path, {"gaussian": WATCHED})
    monkeypatch.syspath_prepend(tmp_path)
    catalog = discover({"COHORTIUM_PLUGIN_ALLOW": only})
    status = {r.distribution: r.status for r in catalog.records if r.name == "gaussian"}
    assert status["acme"] == "blocked"
    assert "acme_gaussian" not in sys.modules
    if not only.startswith("acme"):
        assert catalog.find("privatizer", "gaussian").factory.__module__ == "cohortium_gaussian"


def test_first_distribution_copy_on_path_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("first", "second"):
        (tmp_path / place).mkdir()
    broken_plugins.put(tmp_path / "first", {"even": GOOD.replace("gaussian", "even")}, "acme-split")
    broken_plugins.put(tmp_path / "second", {"odd": "raise SystemExit"}, "Acme_Split")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "first"), str(tmp_path / "second"), *sys.path])
    names = [r.name for r in discover({}).records if normalize_name(r.distribution) == "acme-split"]
    assert names == ["even"]
