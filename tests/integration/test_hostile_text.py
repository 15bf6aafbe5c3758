"""Words of strangers: none reaches a terminal, a log or a message as a command, or as a line."""

from __future__ import annotations

import io
import logging
import sys
import unicodedata
from typing import TYPE_CHECKING, Any

import pytest
import tomli_w
from hypothesis import example, given
from hypothesis import strategies as st

from cohortium import Federation, federation
from cohortium.cli import main
from cohortium.cli._site import log_to_stderr
from cohortium.data.examples import DataSpec
from cohortium.deployment import rehearsal
from cohortium.deployment.site_config import SiteConfig
from cohortium.deployment.site_server import SiteServer
from cohortium.errors import CohortiumError, RefusalError, StudyError
from cohortium.learning.optimizers import make_optimizer
from cohortium.messages.codec import decode, encode
from cohortium.messages.deployment import Invitation
from cohortium.messages.run import Refusal
from cohortium.plugin import Multiclass
from cohortium.runs.invite import build_invitation
from cohortium.study import toml
from cohortium.text import (
    MAX_REASON_LENGTH,
    escape_control_characters,
    is_printable,
    quote_key,
    sanitize,
    truncate,
)
from tests.support.federations import tiny_federation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FORGED = "data, keys, ledger and policy are in order"

HOSTILE = [
    "\x1b[2J\x1b[1;1H",
    "\x1b]0;title\x07",
    "\x9b31m",
    f"a\nsite 0: {FORGED}",
    f"a\r{FORGED}",
    f"a\u2028{FORGED}",
    f"a\x0b\x0c\x85{FORGED}",
    "\u202egnp.exe\u2066",
    "zero\u200bwidth\ufeff",
    "\ud800",
    "[/bold][red]x",
    "\x00\x08\x7f",
]

QUIET = ("Zs",)
"""What is no control although Python escapes it: spaces of other widths."""


def is_quiet(text: str) -> bool:
    """Whether no character but a line's end is one that a terminal obeys."""
    return all(c == "\n" or c.isprintable() or unicodedata.category(c) in QUIET for c in text)


@given(st.text(st.characters(), max_size=60))
@example("".join(HOSTILE))
def test_hostile_text_is_shown_on_one_line(text: str) -> None:
    for safe in (truncate(text), escape_control_characters(text), quote_key(text)):
        assert is_quiet(safe)
        assert "\n" not in safe
        assert safe.encode().decode() == safe
    assert truncate(text)[0] == truncate(text).rstrip("…")[-1]
    assert is_quiet(str(CohortiumError(text)))
    # No line of theirs begins where one of ours would.
    assert all(line.startswith(" ") or not line for line in sanitize(text).split("\n")[1:])


@given(st.text(st.characters(), max_size=3 * MAX_REASON_LENGTH))
def test_refusal_reason_fits_its_message(text: str) -> None:
    refusal = RefusalError(text, text)
    assert is_printable(refusal.reason)
    assert is_printable(refusal.code)
    assert len(refusal.reason) <= MAX_REASON_LENGTH
    assert len(refusal.code) <= 64


def test_unprintable_value_is_named_by_type() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert truncate(Odd()) == "a value of type Odd"
    assert truncate(10**5000) == "a value of type int"
    assert len(truncate([1] * 10_000)) < 100


@pytest.mark.parametrize("text", HOSTILE)
def test_toml_key_is_printable_or_refused(text: str) -> None:
    if "\ud800" in text:
        return  # no file in UTF-8 has it
    quoted = "".join(f"\\U{ord(c):08x}" for c in text)
    for written in (f'"{quoted}" = 1', f'[model]\n"{quoted}" = 1', f'[a."{quoted}"]'):
        if is_printable(text):
            assert toml.loads(written, where="test")
            continue
        with pytest.raises(StudyError) as error:
            toml.loads(written, where="test")
        assert is_quiet(str(error.value))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", HOSTILE)
def test_unprintable_class_names_are_refused(text: str) -> None:
    def spec(name: str) -> DataSpec:
        return DataSpec(channels=1, size=(8, 8), task=Multiclass(("a", name)), examples=9)

    if is_printable(text):
        assert spec(text).classes[1] == text
    else:
        with pytest.raises(ValueError, match="cannot be shown") as error:
            spec(text)
        assert is_quiet(str(error.value))


@pytest.mark.parametrize(
    "written",
    [
        '"TEXT" = 1',
        '["TEXT"]\nx = 1',
        '[federation]\n"TEXT" = 1',
        '[federation]\nrounds = "TEXT"',
        '[federation]\nadversary = "TEXT"',
        '[model]\nname = "TEXT"',
        '[model]\nname = "cnn"\n"TEXT" = 1',
        '[model]\nname = "resnet9"\nnorm = "TEXT"',
        '[model]\nname = "module"\nmodule = "TEXT"',
        '[model]\nname = "descriptor"\ncenter_on = "TEXT"',
        '[model]\nname = "descriptor"\ncenter_on = 1\n"TEXT" = 2',
        '[trainer]\noptimizer_options = {"TEXT" = 1e300}',
        '[trainer]\noptimizer_options = {"TEXT" = 1}',
        '[data]\nchannels = 1\nsize = [8, 8]\nexamples = 9\ntask = {name = "x", y = "TEXT"}',
        '[data.task]\nname = "multiclass"\nnames = ["TEXT"]',
        '[dataset]\nname = "npz"\npath = "TEXT"',
        '[grid]\n"TEXT" = [1, 2]',
        '[grid]\n"model.width" = ["TEXT", "b"]',
        '[grid.a]\n"TEXT" = {"model.name" = "cnn"}',
        'x = "TEXT"\nTEXT',
    ],
)
def test_study_text_cannot_control_terminal(
    written: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    quoted = "".join(f"\\U{ord(c):08x}" for c in "".join(HOSTILE) if c != "\ud800")
    (tmp_path / "study.toml").write_text(written.replace("TEXT", quoted))
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "study.toml"])
    heard = capsys.readouterr()
    assert stopped.value.code == 2
    assert is_quiet(heard.err)
    assert is_quiet(heard.out)
    # One sentence, or lines that are visibly of it.
    first, *others = heard.err.rstrip("\n").split("\n")
    assert first.startswith("cohortium: ")
    assert all(line.startswith(" ") for line in others)
    assert not any(line.startswith(FORGED) for line in others)


def test_hostile_optimizer_name_is_escaped() -> None:
    for name, options in (("".join(HOSTILE), {}), ("sgd", {"".join(HOSTILE): 1.0})):
        with pytest.raises(StudyError) as error:
            make_optimizer(name, [], learning_rate=0.1, options=options)
        assert is_quiet(str(error.value))
        assert "\n" not in str(error.value)


def test_traceback_escapes_control_characters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("".join(HOSTILE))

    monkeypatch.setattr(federation, "read", fails)
    with pytest.raises(SystemExit):
        main(["plan"])
    heard = capsys.readouterr().err
    assert "RuntimeError" in heard
    assert is_quiet(heard)
    assert not any(line.startswith(("site 0", FORGED)) for line in heard.splitlines())


@pytest.fixture(scope="module")
def reception(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SiteServer, Invitation]]:
    folder = tmp_path_factory.mktemp("hospital") / "new"
    rehearsal.write_rehearsal(tiny_federation().prepare(), folder, engine="inline")
    site_config = SiteConfig.read(folder / "site-0" / "site.toml")
    journal = site_config.open_journal()
    yield (
        SiteServer(site_config, journal),
        build_invitation(Federation.read(folder / "study.toml").prepare()),
    )
    journal.close()


def invited(invitation: Invitation, change: Callable[[dict[str, Any], str], None]) -> Invitation:
    """An invitation to a study that `change` has put hostile words into."""
    words = "".join(HOSTILE).replace("\ud800", "")
    shared = toml.loads(invitation.study, where="test")
    change(shared, words)
    return Invitation(b"another run's id", tomli_w.dumps(shared), "", invitation.versions)


@pytest.mark.parametrize(
    "change",
    [
        lambda study, words: study.update({words: {}}),
        lambda study, words: study["federation"].update({words: 1}),
        lambda study, words: study["federation"].update(device=words),
        lambda study, words: study["model"].update(name=words),
        lambda study, words: study["model"].update({words: 1}),
        lambda study, words: study["trainer"].update(optimizer=words),
        lambda study, words: study["data"].update(classes=[words, "b", "c"]),
    ],
)
def test_invitation_text_cannot_control_site_terminal(
    change: Callable[[dict[str, Any], str], None],
    reception: tuple[SiteServer, Invitation],
    capfd: pytest.CaptureFixture[str],
) -> None:
    site_config, invitation = reception
    with log_to_stderr():
        reply = site_config.answer(encode(invited(invitation, change)), b"")
    refusal = decode(reply, Refusal)
    assert is_printable(refusal.reason)
    log = capfd.readouterr().err
    assert is_quiet(log)
    assert log.count("\n") == 1
    assert log.startswith("refused (")


def test_hostile_invitation_versions_are_logged_on_one_line(
    reception: tuple[SiteServer, Invitation], capfd: pytest.CaptureFixture[str]
) -> None:
    site_config, invitation = reception
    words = "".join(HOSTILE).replace("\ud800", "")
    versions = {**invitation.versions, "cohortium": words}
    lying = Invitation(b"a third run's id", invitation.study, "", versions)
    with log_to_stderr():
        refusal = decode(site_config.answer(encode(lying), b""), Refusal)
    assert is_printable(refusal.reason)
    log = capfd.readouterr().err
    assert is_quiet(log)
    assert log.count("\n") == 1


def test_site_log_escapes_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    # pytest would capture the raw records, and its workers cannot send a lone surrogate.
    monkeypatch.setattr(logging.getLogger("cohortium"), "propagate", False)
    with log_to_stderr():
        for text in HOSTILE:
            logging.getLogger("cohortium.test").warning("%s", f"refused (study): {text}")
    lines = log.getvalue().splitlines()
    assert is_quiet(log.getvalue())
    assert all(line.startswith(("refused", "  ")) for line in lines)
