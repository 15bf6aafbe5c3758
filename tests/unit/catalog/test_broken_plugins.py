"""One plugin at its worst marks itself alone, for every command and for the shell."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cohortium import discover
from cohortium.catalog.construction import build_part
from cohortium.catalog.parameters import parameters_of
from cohortium.cli import _completion
from cohortium.errors import PluginError, StudyError
from cohortium.testing import suite
from cohortium.third_party import call_guarded, describe_error, truncated
from tests.support import broken_plugins


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command beside the plugins in `folder`."""
    return subprocess.run(
        [sys.executable, "-m", "cohortium", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": os.environ["PATH"], "COLUMNS": "200"},
    )


@pytest.fixture
def all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    broken_plugins.put(tmp_path, broken_plugins.BROKEN | broken_plugins.USABLE)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_broken_plugin_marks_only_its_record(all_of_them: Path) -> None:
    catalog = discover({})
    status = {r.name: r.status for r in catalog.records}
    expected = dict.fromkeys(broken_plugins.BROKEN, "broken")
    expected |= dict.fromkeys(broken_plugins.USABLE, "active")
    # One whose version cannot even be compared is either; it is not used.
    assert status["apis"] in ("broken", "incompatible")
    assert {n: s for n, s in status.items() if n in expected and n != "apis"} == {
        n: s for n, s in expected.items() if n != "apis"
    }
    assert {s for n, s in status.items() if n not in expected} == {"active"}
    for record in catalog.records:
        assert record.reason.isprintable()
        assert len(record.reason) < 1000
        assert bool(record.reason) == (record.status != "active")
    for offering in catalog.entries:
        assert offering.offer.summary.isprintable()


def test_plugins_command_escapes_hostile_text(all_of_them: Path) -> None:
    done = command(all_of_them, "plugins")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "[/x] [red]:smile: \\x1b[31m\\nred" in done.stdout
    assert "bracketed (acme 1.5) is broken: RuntimeError: no [file] in [/tmp]" in done.stdout
    assert "\x1b" not in done.stdout
    assert "gaussian" in done.stdout
    rows = json.loads(command(all_of_them, "plugins", "--json").stdout)
    assert {row["name"] for row in rows} >= {
        *broken_plugins.BROKEN,
        *broken_plugins.USABLE,
        "gaussian",
    }


@pytest.mark.parametrize(
    "name",
    [
        "markup",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("classes", "defaults", "makes", "refuses", "texts")
        ),
    ],
)
def test_showing_hostile_plugin_gives_no_traceback(all_of_them: Path, name: str) -> None:
    done = command(all_of_them, "plugins", name)
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stdout
    if done.returncode:
        assert done.stderr.startswith("cohortium: ")
        assert done.stderr.count("\n") == 1
    assert command(all_of_them, "plugins", "gaussian").returncode == 0


@pytest.mark.parametrize("name", ["classes", "makes", "refuses"])
def test_unbuildable_plugin_gives_one_sentence(all_of_them: Path, name: str) -> None:
    catalog = discover({})
    with pytest.raises((PluginError, StudyError)):
        build_part(catalog, "partitioner", {"name": name}, where="here")
    done = command(all_of_them, "check", name)
    assert done.returncode not in (0, 130)
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_completion_works_despite_broken_plugins(all_of_them: Path) -> None:
    assert ("gaussian", "privatizer") in _completion.plugin_names("")
    assert any(key == "partitioner.alpha=" for key, _ in _completion.overrides("partitioner.al"))
    with pytest.raises(PluginError):
        parameters_of(discover({}).find("partitioner", "classes"))


def test_check_raising_keyboard_interrupt_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_it(instance: object) -> None:
        """It ends."""
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "checks_for", lambda _: (("ends", check_it),))
    (verdict,) = suite.run_checks("model", object())
    place = r"\(test_broken_plugins.py, line \d+\)"
    assert re.fullmatch(rf"it raised KeyboardInterrupt {place}", verdict.failure)


DAMAGED = {
    "no name": (b"Metadata-Version: 2.1\n", b"[cohortium]\nodd = acme_odd\n"),
    "no metadata": (None, b"[cohortium]\nodd = acme_odd\n"),
    "no equals": (b"Name: acme\nVersion: 1\n", b"[cohortium]\nodd\n"),
    "no module": (b"Name: acme\nVersion: 1\n", b"[cohortium]\nodd = 3 x ==\n"),
    "no text": (b"Name: acme\nVersion: 1\n", b"[cohortium]\nodd = \xff\xfe\n"),
    "escapes": (b"Name: acme\nVersion: 1\x1b[2J\n", b"[cohortium]\no\x1b[2Jd = acme_odd\n"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_metadata_mark_their_own_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    told, points = DAMAGED[damage]
    info = tmp_path / "acme-1.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_bytes(points)
    if told is not None:
        (info / "METADATA").write_bytes(told)
    monkeypatch.syspath_prepend(tmp_path)
    unusable = [r for r in discover({}).records if r.status != "active"]
    (record,) = unusable
    assert record.status == "broken"
    assert record.reason
    assert (record.name + record.label + record.reason).isprintable()
    assert "gaussian" in discover({}).names("privatizer")


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_is_not_attributed_to_plugin() -> None:
    def swallow() -> str:
        try:
            signal.raise_signal(signal.SIGINT)
        except BaseException:  # noqa: BLE001
            return "swallowed"
        return "never"

    before = signal.getsignal(signal.SIGINT)
    for act in (swallow, lambda: signal.raise_signal(signal.SIGINT)):
        with pytest.raises(KeyboardInterrupt):
            call_guarded(act)
        assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(PluginError, match="KeyboardInterrupt"):
        call_guarded(lambda: (_ for _ in ()).throw(KeyboardInterrupt))


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_during_plugin_import_ends_command(tmp_path: Path) -> None:
    broken_plugins.put(
        tmp_path,
        {"slow": "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nwhile True: pass"},
    )
    done = command(tmp_path, "plugins")
    assert done.returncode in (1, 130, -signal.SIGINT)
    assert "gaussian" not in done.stdout


def test_plugin_text_is_truncated_to_one_line() -> None:
    assert truncated("a\r\n\x1b[2J\u202e\udcff\u00a0ü") == r"a\r\n\x1b[2J\u202e\udcff" + "\u00a0ü"
    assert len(truncated("x" * 10**6)) == 401
    assert describe_error(ValueError("a\nb")) == r"ValueError: a\nb"
