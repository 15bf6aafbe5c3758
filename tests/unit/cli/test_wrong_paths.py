"""Every command that takes a path refuses one of another kind, in a sentence with the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from cohortium.errors import CohortiumError, RefutedError
from tests.support.command_line import cohortium

SITE = '[site]\nid = 0\ndataset_id = "lesions"\n'
IMAGES = "images.png"

RUN_COMMANDS = {
    "resume": ["resume", "{}"],
    "sign": ["sign", "{}"],
    "sign with a key": ["sign", "{}", "--key", "lead.pem"],
    "evaluate": ["evaluate", "{}", "--epsilon", "1", "--delta", "1e-4"],
    "evaluate elsewhere": ["evaluate", "{}", "--study", "study.toml", "--out", "new"],
    "report": ["report", "{}", "--out", "new.html"],
    "compare": ["compare", "{}", "{}"],
    "predict": ["predict", "{}", IMAGES],
    "export": ["export", "{}", "--out", "new"],
    "serve": ["serve", "{}", "--public", "new"],
    "adapt": ["adapt", "{}", "site.toml", "--out", "new"],
}
"""Commands that take the folder of a run."""

NO_RUNS = {
    "missing": "does not exist; give the folder",
    "study.toml": "is a file and no run's folder; give the folder",
    "runs/one/result.json": "is a file and no run's folder; give runs/one",
    "empty": "holds no run: there is no study.toml in it; give the folder",
    "hospital": "is a hospital's folder and holds no run; give the folder",
    "exported": "is an exported model, for use without Cohortium; give the folder",
    "public": "is the public part of a model, without its weights; use it",
    "rehearsal": "holds a rehearsal deployment and no run; start its sites",
    "runs": "holds folders of runs; give one of them, such as runs/one",
    "grid": "holds a grid; give the folder of one of its runs, such as grid/plain/seed-1",
}
"""Paths of another kind, with a part of the refusal."""

FILE_COMMANDS = {
    "run": (["run", "{}"], "study.toml"),
    "plan": (["plan", "{}"], "study.toml"),
    "audit": (["audit", "{}"], "study.toml"),
    "attack": (["attack", "{}", "--out", "new.html"], "study.toml"),
    "statistics": (["statistics", "{}", "--epsilon", "1"], "study.toml"),
    "tune": (["tune", "{}", "--share", "0.2"], "study.toml"),
    "rehearse": (["rehearse", "{}", "--out", "new"], "study.toml"),
    "site": (["site", "{}"], "site.toml"),
    "studies": (["studies", "{}"], "site.toml"),
    "approve": (["approve", "{}", "0" * 8, "--until", "2030-01-01", "--by", "A"], "site.toml"),
    "revoke": (["revoke", "{}", "0" * 8, "--by", "A"], "site.toml"),
    "own-report": (["own-report", "{}"], "site.toml"),
    "ledger": (["ledger", "{}"], "ledger.sqlite"),
    "trail": (["trail", "{}"], "audit.jsonl"),
    "trail --check": (["trail", "{}", "--check"], "audit.jsonl"),
}
"""Commands that take a file, with the name of one of its kind."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("empty", "hospital", "exported", "public", "rehearsal/site-0", "runs/one",
                 "grid/plain/seed-1"):  # fmt: skip
        (tmp_path / name).mkdir(parents=True)
    study = "[federation]\nrounds = 1\n"
    for name in ("study.toml", "rehearsal/study.toml", "runs/one/study.toml",
                 "grid/plain/seed-1/study.toml"):  # fmt: skip
        (tmp_path / name).write_text(study)
    for name in ("exported/model.pt2", "public/model.toml", "runs/one/result.json"):
        (tmp_path / name).write_text("")
    for name in ("site.toml", "hospital/site.toml", "rehearsal/site-0/site.toml"):
        (tmp_path / name).write_text(SITE)
    (tmp_path / IMAGES).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    cohortium("keygen", "--out", "lead.pem")
    return tmp_path


def refusal(arguments: list[str], path: str) -> str:
    """Return the sentence with which a command refuses `path`."""
    with pytest.raises(CohortiumError) as caught:
        cohortium(*(each.replace("{}", path) for each in arguments))
    told = str(caught.value)
    assert "\n" not in told
    assert told.endswith(".")
    assert caught.value.exit_code == 2
    return told


@pytest.mark.parametrize("command", RUN_COMMANDS)
def test_command_for_run_refuses_other_path(here: Path, command: str) -> None:
    for path in ("missing", "exported"):
        assert f"{path} {NO_RUNS[path]}" in refusal(RUN_COMMANDS[command], path)
    assert not (here / "new").exists()


@pytest.mark.parametrize("path", NO_RUNS)
def test_refusal_says_what_the_path_is(here: Path, path: str) -> None:
    assert f"{path} {NO_RUNS[path]}" in refusal(["sign", "{}"], path)


@pytest.mark.parametrize("command", FILE_COMMANDS)
def test_command_for_file_refuses_folder(here: Path, command: str) -> None:
    arguments, name = FILE_COMMANDS[command]
    (here / "folder").mkdir()
    assert "folder: it is a folder; give a" in refusal(arguments, "folder").replace(
        " cannot be used", ""
    )
    (here / "folder" / name).write_text("")
    assert f"it is a folder; give folder/{name}." in refusal(arguments, "folder")


def test_folder_in_place_of_key_or_page_is_refused(here: Path) -> None:
    told = refusal(["keygen", "0", "--public", "{}"], "empty")
    assert told == "cannot read the key empty: it is a folder; give a file."
    told = refusal(["attack", "study.toml", "--out", "{}"], "empty")
    assert told == "cannot write empty: it is a folder; name a file in it."
    told = refusal(["attack", "study.toml", "--out", "{}"], "gone/page.html")
    assert told == "cannot write gone/page.html: there is no folder gone; make it first."


def test_file_that_is_no_trail_is_not_called_altered(here: Path) -> None:
    with pytest.raises(RefutedError, match="its first line is none of a trail: it is another file"):
        cohortium("trail", "lead.pem")


def test_unfinished_run_has_no_result_to_sign(here: Path) -> None:
    (here / "runs" / "one" / "result.json").unlink()
    assert cohortium("sign", "runs/one")[:2] == (
        0, "nobody has signed this run, which has no result yet\n"
    )  # fmt: skip
