"""Every command in every encoding: what it lacks is spelled, and files are UTF-8 all the same."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import define, field

from cohortium.errors import StudyError
from cohortium.study import toml
from tests.support.study_files import CLASSES, PATHS, write_files
from tests.support.warm_processes import LIBRARIES, WarmProcesses

ANSWERS = "\n" * 8

ENCODINGS: dict[str, dict[str, str]] = {
    "utf-8": {"PYTHONIOENCODING": "utf-8"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    # Without the help that Python gives itself where a locale has no name.
    "locale C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


def environment(home: Path, encoding: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, PATHS)),
        "OMP_NUM_THREADS": "1",
        **ENCODINGS[encoding],
    }


@define(eq=False)
class Commands:
    """Processes, forked from one interpreter for each encoding that began with it."""

    _servers: dict[str, WarmProcesses] = field(factory=dict)
    _stack: contextlib.ExitStack = field(factory=contextlib.ExitStack)

    def __call__(
        self, *arguments: str | bytes, cwd: Path, encoding: str
    ) -> tuple[subprocess.CompletedProcess[bytes], str]:
        """A process, and what it printed, read strictly as what it was told to write."""
        values = environment(cwd, encoding)
        if encoding not in self._servers:
            server = WarmProcesses(*LIBRARIES, environment=values)
            self._servers[encoding] = self._stack.enter_context(server).wait()
        command = self._servers[encoding].command("cohortium.cli", "main", "cohortium")
        return told(
            subprocess.run(
                [*command, *arguments],
                cwd=cwd, env=values, capture_output=True, check=False, input=ANSWERS.encode(),
            ),
            encoding,
        )  # fmt: skip

    def close(self) -> None:
        self._stack.close()


def told(
    done: subprocess.CompletedProcess[bytes], encoding: str
) -> tuple[subprocess.CompletedProcess[bytes], str]:
    name = "cp1252" if encoding == "cp1252" else "utf-8" if encoding == "utf-8" else "ascii"
    errors = done.stderr.decode(name)
    assert "Traceback" not in errors
    assert "Unicode" not in errors
    return done, done.stdout.decode(name)


@pytest.fixture(scope="module")
def cohortium() -> Iterator[Commands]:
    commands = Commands()
    yield commands
    commands.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, cohortium: Commands) -> Path:
    """A run, and a deployment dealt from it, by processes that print cp1252."""
    folder = tmp_path_factory.mktemp("made")
    write_files(folder)
    done, text = cohortium("run", "study.toml", "--out", "run", cwd=folder, encoding="cp1252")
    assert done.returncode == 0, done.stderr
    assert "eps = 50 at delta = 0.001" in text
    done, _ = cohortium("rehearse", "study.toml", "--out", "dealt", cwd=folder, encoding="cp1252")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_run_files_are_utf_8_in_every_encoding(made: Path) -> None:
    assert CLASSES[1] in (made / "run" / "report.html").read_text("utf-8")
    assert "ε" in (made / "run" / "report.html").read_text("utf-8")
    assert CLASSES[1] in (made / "run" / "result.json").read_text("utf-8")
    assert CLASSES[1] in (made / "dealt" / "study.toml").read_text("utf-8")


COMMANDS = [
    ("--help",), ("run", "--help"), ("audit", "--help"), ("--version",),
    ("plan", "study.toml"), ("plugins",), ("plugins", "gaussian"), ("check", "iid"),
    ("resume", "run"), ("report", "run", "--out", "{}/page.html"), ("compare", "run", "run"),
    ("audit", "study.toml", "--samples", "1000", "--out", "{}/found.json"),
    ("predict", "run", "data.npz"), ("predict", "run", "data.npz", "--out", "{}/called.csv"),
    ("export", "run", "--out", "{}/export"), ("ledger", "run/ledger.sqlite"),
    ("site", "dealt/site-0/site.toml", "--check"), ("keygen", "3", "--out", "{}/key.pem"),
    ("rehearse", "study.toml", "--out", "{}/dealt"), ("new-plugin", "my-part", "--role", "model",
     "--out", "{}/part"), ("init", "{}/new.toml", "--yes"), ("run", "grid.toml", "--dry-run"),
    ("run", "grid.toml", "--out", "{}/grid"), ("run", "study.toml", "--set", "model.width=ε"),
    ("run", "study.toml", "--set", "model.name=第三级"), ("run", "missing-第三级.toml"),
]  # fmt: skip
CASES = [(command, "cp1252") for command in COMMANDS]
CASES += [(COMMANDS[i], other) for i in (0, 4, 5, 9, 12, 23, 24) for other in ("ascii", "locale C")]


@pytest.mark.slow
@pytest.mark.parametrize(("command", "encoding"), CASES, ids=str)
def test_command_works_in_any_locale_encoding(
    command: tuple[str, ...], encoding: str, made: Path, tmp_path: Path, cohortium: Commands
) -> None:
    arguments = [each.replace("{}", str(tmp_path)).encode() for each in command]
    done, text = cohortium(*arguments, cwd=made, encoding=encoding)
    told = done.stderr.decode("utf-8", "replace")
    is_fault = any(ord(c) > 127 for each in command for c in each) or command[0] == "resume"
    assert done.returncode == (2 if is_fault else 0), told
    is_silent = command[0] == "site" or (command[:2] == ("predict", "run") and "--out" in command)
    assert bool(text) != is_fault or is_silent, told
    for written in tmp_path.rglob("*"):
        if written.suffix in (".html", ".csv", ".json", ".md", ".toml", ".py"):
            written.read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_json_output_keeps_every_character(encoding: str, made: Path, cohortium: Commands) -> None:
    done, text = cohortium("predict", "run", "data.npz", "--json", cwd=made, encoding=encoding)
    assert done.returncode == 0
    assert set(json.loads(text)[0]["probabilities"]) == set(CLASSES)


@pytest.mark.slow
def test_text_output_escapes_only_unencodable_characters(made: Path, cohortium: Commands) -> None:
    _, text = cohortium("predict", "run", "data.npz", cwd=made, encoding="utf-8")
    assert text.splitlines()[0] == f'image,predicted,"{CLASSES[0]}",{CLASSES[1]},{CLASSES[2]}'
    _, text = cohortium("predict", "run", "data.npz", cwd=made, encoding="cp1252")
    assert "vergrößert" in text
    assert r"\u7b2c\u4e09\u7ea7" in text
    assert "eps <= 1" in text


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["cp1252", "locale C"])
def test_new_interpreter_works_in_any_locale_encoding(encoding: str, made: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cohortium", "report", "run", "--out", f"{encoding}.html"],
        cwd=made, env=environment(made, encoding), capture_output=True, check=False,
    )  # fmt: skip
    told(done, encoding)
    assert done.returncode == 0
    assert CLASSES[1] in (made / f"{encoding}.html").read_text("utf-8")


@pytest.mark.slow
def test_undecodable_path_is_refused_in_one_sentence(made: Path, cohortium: Commands) -> None:
    done, _ = cohortium("run", b"no\xff.toml", cwd=made, encoding="utf-8")
    assert done.returncode == 2
    assert rb"no\udcff.toml" in done.stderr
    for argument in (("--set", b"dataset.path=\xff.npz"), ("--out", b"r\xff")):
        done, _ = cohortium("run", "study.toml", *argument, cwd=made, encoding="utf-8")
        assert done.returncode == 2
        assert b"is no text in this locale" in done.stderr
        assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "latin-1"])
def test_study_reading_ignores_locale_encoding(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_bytes("[federation]\nkey_directory = 'größer'\n".encode(encoding))
    if encoding.startswith("utf-8"):
        assert toml.read(path, what="the study")["federation"] == {"key_directory": "größer"}
    else:
        with pytest.raises(StudyError, match="is not a text file in UTF-8"):
            toml.read(path, what="the study")
