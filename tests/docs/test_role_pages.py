"""Every role has a page that names all of its contract, all of its plugins, and a whole example."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from cohortium import discover, plugin, scaffold, testing
from cohortium.roles import ROLES, Role, hooks

DOCS = Path(__file__).parents[2] / "docs"
OURS = [o for o in discover().entries if o.record.distribution == "cohortium"]

CONTRACTS: dict[Role, tuple[str, ...]] = {
    "dataset": ("Dataset",),
    "task": ("Task",),
    "partitioner": ("Partitioner",),
    "model": ("Model",),
    "trainer": ("Trainer", "ServerStateTrainer", "OwnModelTrainer"),
    "privatizer": ("Privatizer", "PrivacyPlan", "RoundPlan", "SitePrivatizer"),
    "aggregator": ("Aggregator", "CoordinatorSession", "SiteSession"),
    "engine": ("Engine", "DeploymentEngine", "SiteFactory", "SiteHandle", "EngineSession"),
    "observer": ("Observer",),
}


def page(role: Role) -> str:
    return (DOCS / "roles" / f"{role}.md").read_text("utf-8")


def signatures(contract: str) -> list[str]:
    """What the page of a role has to say of one of its protocols, as it stands there."""
    found = []
    for name, member in vars(getattr(plugin, contract)).items():
        if name.startswith("_"):
            continue
        if isinstance(member, property):
            found.append(f"{contract}.{name}")
        elif inspect.isfunction(member):
            arguments = [p for p in inspect.signature(member).parameters if p != "self"]
            found.append(f"{contract}.{name}({', '.join(arguments)})")
    return found


@pytest.mark.parametrize("role", ROLES)
def test_every_method_and_argument_is_explained(role: Role) -> None:
    text = page(role)
    wanted = [line for contract in CONTRACTS[role] for line in signatures(contract)]
    assert wanted
    told = re.findall(r"^`([A-Z]\w+\.\w+(?:\([^`]*\))?)`\n:   \S", text, re.MULTILINE)
    assert sorted(told) == sorted(wanted), f"docs/roles/{role}.md and the protocol differ"


def test_every_protocol_belongs_to_a_role() -> None:
    protocols = {
        name for name in plugin.__all__ if getattr(getattr(plugin, name), "_is_protocol", False)
    }
    assert protocols - {"Journal"} == {name for names in CONTRACTS.values() for name in names}


@pytest.mark.parametrize("role", ROLES)
def test_role_page_lists_offered_plugins(role: Role) -> None:
    known = page(role).split("## Known\n")[1].split("\n## ")[0]
    told = re.findall(r"^\| `([a-z0-9-]+)` \| \S", known, re.MULTILINE)
    assert told == sorted(o.offer.name for o in OURS if o.role == role)


@pytest.mark.parametrize("role", ROLES)
def test_role_page_lists_guarantees(role: Role) -> None:
    assert "**Guarantees.**\n\n- " in page(role)


@pytest.mark.parametrize("role", ROLES)
def test_role_example_matches_new_plugin_output(role: Role) -> None:
    """And that is installed, checked and run by tests of its own."""
    files = scaffold.Skeleton(name=f"my-{role}", role=role).files()
    (code,) = (text for path, text in files.items() if path.endswith("__init__.py"))
    assert f"```python\n{code}```\n" in page(role)
    assert f"`cohortium new-plugin my-{role} --role {role}`" in page(role)


def test_every_hook_is_on_the_page_of_roles() -> None:
    text = (DOCS / "roles" / "index.md").read_text("utf-8")
    for role in ROLES:
        assert f"[{role.capitalize()}]({role}.md)" in text
        assert f"`{hooks.hook_name(role)}`" in text


def test_observer_page_lists_every_event() -> None:
    events = re.findall(r"^\| `(\w+)` \|", page("observer").split("## Known")[0], re.MULTILINE)
    assert set(events) == {kind.__name__ for kind in plugin.Event.__args__}


def reference(name: str) -> list[str]:
    text = (DOCS / "reference" / f"{name}.md").read_text("utf-8")
    return re.findall(r"^::: (\S+)", text, re.MULTILINE)


def test_reference_lists_every_plugin_api_name() -> None:
    assert sorted(reference("plugin")) == sorted(f"cohortium.plugin.{n}" for n in plugin.__all__)


def test_reference_lists_every_builtin_plugin() -> None:
    packages = {o: o.offer.factory.__module__.partition("._")[0] for o in OURS}
    wanted = {f"{packages[o]}.{o.offer.factory.__qualname__}" for o in OURS}
    assert set(reference("plugins")) == wanted


def test_reference_lists_conformance_kit() -> None:
    told = reference("testing")
    for name in testing.__all__:
        module = (
            getattr(testing, name).__module__ if name != "Check" else "cohortium.testing.contract"
        )
        assert module in told or f"{module}.{name}" in told, name
