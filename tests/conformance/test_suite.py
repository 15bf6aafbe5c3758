from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from attrs import frozen

from cohortium.catalog.discovery import Catalog, CatalogEntry, PluginRecord
from cohortium.cli import main
from cohortium.roles import ROLES
from cohortium.roles.hooks import Offer
from cohortium.testing import classes, suite

if TYPE_CHECKING:
    from cohortium.plugin import Event


@frozen
class Silent:
    loud: bool = False

    def start_run(self) -> Any:
        return self._pass

    def _pass(self, event: Event) -> None:
        """Hears nothing."""
        if self.loud:
            raise RuntimeError(type(event).__name__)


@frozen
class Strict:
    """Cannot be made without saying how."""

    loud: bool

    def start_run(self) -> Any:
        return lambda _event: None


def installed(status: Any = "active", reason: str = "") -> Catalog:
    record = PluginRecord(
        name="quiet", target="q", distribution="d", version="1", status=status, reason=reason
    )
    offers = (Offer("silent", Silent, "Says nothing."), Offer("strict", Strict, "Asks."))
    return Catalog((record,), tuple(CatalogEntry("observer", offer, record) for offer in offers))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command over what is installed here; exit code, output and error."""

    def run(*arguments: str, catalog: Catalog | None = None) -> tuple[Any, str, str]:
        monkeypatch.setattr("cohortium.catalog.discovery.discover", lambda: catalog or installed())
        with pytest.raises(SystemExit) as caught:
            main(["check", *arguments])
        return caught.value.code, *capsys.readouterr()

    return run


def test_every_role_has_uniquely_named_checks() -> None:
    for role in ROLES:
        names = [name for name, _ in suite.checks_for(role)]
        assert len(set(names)) == len(names) > 7


def test_every_role_has_a_class() -> None:
    kinds: Any = classes.Conformance.__subclasses__()
    assert [kind.role for kind in kinds] == list(ROLES)
    assert [kind.__name__.lower().removesuffix("conformance") for kind in kinds] == list(ROLES)


def test_check_command_prints_one_line_per_check(run: Any) -> None:
    code, out, _ = run("silent")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "observer 'silent' of quiet (d 1)"
    assert len(lines) == 1 + len(suite.checks_for("observer"))
    assert lines[1] == "  ✓ It has the methods of its role"


def test_failed_check_is_named_and_exits_one(run: Any) -> None:
    code, out, _ = run("silent", "--set", "loud=true")
    assert code == 1
    assert "✗ takes every event: the listener raised RuntimeError (RunStarted)" in out


@pytest.mark.slow
def test_all_that_a_plugin_offers_is_checked(run: Any) -> None:
    code, out, _ = run("quiet", "--set", "loud=false")
    assert code == 0
    assert [line for line in out.splitlines() if not line.startswith("  ✓")] == [
        "observer 'silent' of quiet (d 1)",
        "observer 'strict' of quiet (d 1)",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("slient",), "no plugin is called 'slient', and none offers it; did you mean silent?"),
        (("zzz",), "see `cohortium plugins`."),
        (("strict",), "cannot be made without loud; give it as in --set loud=…."),
        (("strict", "--set", "loud"), "write it as key=value"),
        (("strict", "--set", "loud=3"), "expected bool"),
        (("strict", "--set", "loud=true", "--set", "lout=1"), "no such parameter; did you mean lo"),
    ],
)
def test_invalid_check_request_gives_one_sentence(
    run: Any, arguments: tuple[str, ...], words: str
) -> None:
    code, out, error = run(*arguments)
    assert code == 2
    assert out == ""
    assert error.startswith("cohortium: ")
    assert words in error


def test_unusable_plugin_error_states_reason(run: Any) -> None:
    code, _, error = run("quiet", catalog=installed("broken", "it fell over."))
    assert code == 2
    assert error == "cohortium: quiet (d 1) is broken: it fell over.\n"


@pytest.mark.slow
def test_an_exception_of_the_plugin_is_a_finding() -> None:
    failures = {v.check: v.failure for v in suite.run_checks("observer", Strict(loud=True))}
    assert failures["listeners are independent"] == ""
    failures = {v.check: v.failure for v in suite.run_checks("dataset", Broken())}
    found = failures["loads splits"]
    assert re.fullmatch(r"it raised KeyError: 'no' \(.*test_suite\.py, line \d+\)", found), found


@frozen
class Broken:
    def load(self) -> Any:
        raise KeyError("no")
