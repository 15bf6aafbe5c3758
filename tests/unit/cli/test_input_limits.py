"""Values that nobody means, and places that nobody can write to: a sentence, before any work."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from cohortium.cli import main
from cohortium.errors import StudyError
from cohortium.federation import Federation
from cohortium.study import study_file

if TYPE_CHECKING:
    from pathlib import Path

SHARED = ["federation.max_colluding=1", "federation.min_contributors=8", "privatizer.name=skellam"]


@pytest.mark.parametrize(
    "settings",
    [
        ["privatizer.clip_norm=1e300"],
        ["privatizer.clip_norm=1e-300"],
        ["privatizer.clip_norm=0"],
        ["privatizer.clip_norm=nan"],
        ["privatizer.max_abs_value=1e300"],
        ["privatizer.quantization_step=1e-300"],
        ["privatizer.delta=1"],
        ["privatizer.epsilon=inf"],
        [*SHARED, "privatizer.clip_norm=1e300"],
        [*SHARED, "privatizer.rounding_slack=1e-300"],
        ["federation.rounds=1e11"],
        ["federation.rounds=100000000000"],
        ["federation.retries=100000000000"],
        ["federation.sites=100000000000"],
        ["federation.max_colluding=100000000000"],
        ["dataset.examples=1000000000000"],
        ["trainer.statistics_rounds=1000000000000"],
        *(
            [f"trainer.name={name}", f"trainer.{key}=1000000000000"]
            for name in ("fedavg", "fedprox", "fedmic")
            for key in ("local_epochs", "local_steps", "batch_size")
        ),
        ["aggregator.reconstruction_threshold=1000000000000"],
        ["aggregator.threads=1000000000000"],
        ["engine.name=ray", "engine.workers=1000000000000"],
        ["engine.name=flower", "engine.connect_timeout=1e300"],
        ["engine.name=flower", "engine.poll_interval=1e-300"],
        ["privatizer.name=none", "privatizer.max_abs_value=1e300"],
        ["privatizer.name=none", "privatizer.quantization_step=1e-300"],
        ["model.name=scatternet", "model.groups=0", "model.scales=1000000000"],
        ["model.name=scatternet", "model.groups=0", "model.angles=1000000000"],
        ["federation.sites=0"],
        ["federation.seed=-1"],
        ["trainer.augmentation_multiplicity=100000000"],
        ["trainer.augmentation_multiplicity=1024"],
        ["trainer.sampling_rate=1e-300"],
        ["trainer.name=fedavg", "trainer.augmentation_multiplicity=100000000"],
        ["trainer.name=fedprox", "trainer.mu=1e300"],
        ["model.bins=1000000000"],
        ["model.edge_bins=1000000000"],
        ["model.norm=1e300"],
        ["model.name=cnn", "model.width=100000000000000000000"],
        ["model.name=dpresnet", "model.width=1000000"],
        ["model.name=resnet9", "model.width=1000000"],
        ["model.name=resnet18", "model.width=1000000"],
        ["model.name=unet", "model.width=1000000"],
        ["model.name=vgg16", "model.width=1000000"],
    ],
    ids=" ".join,
)
def test_an_absurd_value_is_refused_by_its_name(settings: list[str]) -> None:
    with pytest.raises(StudyError) as refused:
        Federation.read(None, settings)
    assert str(refused.value).startswith(f"--set {settings[-1]}: ")


def test_nan_radius_is_refused() -> None:
    with pytest.raises(StudyError, match="radii must be positive numbers, ascending"):
        Federation.read(None, ["model.radii=[0.5, nan]"])


@pytest.mark.parametrize("epsilon", ["0", "-1", "nan", "inf"])
@pytest.mark.usefixtures("idle")
def test_plan_with_invalid_epsilon_is_refused(
    epsilon: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--epsilon: 'epsilon' must be" in _refused(["plan", "--epsilon", epsilon], capsys)


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing may be loaded, dealt or planned."""

    def prepare(_: Federation) -> None:
        pytest.fail("the study was prepared before the request was refused")

    monkeypatch.setattr(Federation, "prepare", prepare)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--out", "file"], "cannot write to file: Not a directory."),
        (["run", "--out", "file/record"], "cannot write to file/record: Not a directory."),
        (["run", "--out", "."], ". is not empty; give another folder with --out."),
        (["rehearse", "--out", "file"], "cannot write to file: Not a directory."),
        (["rehearse", "--out", "."], ". is not empty; give another folder with --out."),
        (["audit", "--out", "file"], "file exists already; give another file with --out."),
        (["attack", "--out", "file"], "file exists and is no page of an attack; give another"),
        (["attack", "--out", "no/attack.html"], "cannot write no/attack.html: there is no folder"),
        (["audit", "--out", "no/found.json"], "cannot write no/found.json: there is no folder"),
        (
            ["predict", "run", "a.png", "--out", "no/called.csv"],
            "cannot write no/called.csv: there",
        ),
        (["predict", "run", "a.png", "--out", "file"], "file exists already; give another file"),
        (["report", "run", "--out", "no/report.html"], "cannot write no/report.html: there is"),
        (["report", "run", "--out", "file/report.html"], "cannot write file/report.html: Not a"),
        (["keygen", "0", "--out", "no/key.pem"], "cannot write the key no/key.pem: No such file"),
        (["keygen", "0", "--out", "file"], "file exists, and a key is never overwritten"),
        (["new-plugin", "mine", "--role", "model", "--out", "file"], "cannot write file/"),
        (["ledger", "no/ledger.sqlite", "--create"], "cannot write the ledger no/ledger.sqlite"),
        (["init", "no/study.toml", "--yes"], "cannot write no/study.toml: there is no folder"),
        (["init", "file/study.toml", "--yes"], "cannot write file/study.toml: Not a directory."),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("idle")
def test_unwritable_path_is_refused_before_work(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in _refused(arguments, capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"[federation]\nsites = 4 # \xff\n", "is not a text file in UTF-8"),
        (b"\x00\x01", "is not valid TOML"),
        (None, "it is a folder; give a file"),
    ],
)
@pytest.mark.usefixtures("idle")
def test_invalid_study_file_is_refused(
    data: bytes | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "study.toml"
    if data is None:
        path.mkdir()
    else:
        path.write_bytes(data)
    for command in ("run", "plan", "audit"):
        assert words in _refused([command, "study.toml"], capsys)


def test_study_with_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_bytes("\ufeff[federation]\nsites = 7\n".encode())
    assert Federation.read(path).sites == 7


def test_override_of_part_as_value_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    told = _refused(["run", "--set", "model=cnn"], capsys)
    assert told == (
        "cohortium: --set model=cnn: write it as table.key=value, as in model.name=cnn.\n"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("dataset.groups=[sex]", "single quotes, .* as in --set 'dataset.groups=."),
        ("tune.score=sites", r"no option changes \[tune\], .*; change it in the file"),
        ("grid.seeds=[1]", r"no option changes \[grid\], .*; change it in the file"),
    ],
)
def test_override_that_reaches_no_study_is_explained(
    change: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.search(words, _refused(["run", "--set", change], capsys))


def test_keys_ignored_after_plugin_change_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text('[privatizer]\nname = "gaussian"\nepsilon = 3.0\ndelta = 1e-5\n')
    (told,) = study_file.ignored_keys(path, ["federation.rounds=3", "privatizer.name=skellam"])
    assert told.startswith("--set privatizer.name=skellam: epsilon, delta of [privatizer] in ")
    assert not study_file.ignored_keys(path, ["privatizer.name=gaussian", "model.name=cnn"])
    assert not study_file.ignored_keys(None, ["privatizer.name=skellam"])


@pytest.mark.parametrize("command", ["run", "plan", "audit", "rehearse"])
@pytest.mark.usefixtures("idle")
def test_study_commands_report_ignored_keys(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def prepare(_: Federation) -> None:
        raise StudyError("enough.")

    monkeypatch.setattr(Federation, "prepare", prepare)
    (tmp_path / "study.toml").write_text("[trainer]\nlearning_rate = 0.1\n")
    setting = ["--set", "trainer.name=fedavg"]
    with pytest.raises(SystemExit):
        main(
            [command, "study.toml", *setting, *(["--out", "new"] if command == "rehearse" else [])]
        )
    told = "--set trainer.name=fedavg: learning_rate of [trainer] in study.toml were for 'fedsgd', "
    assert capsys.readouterr().err.startswith(told)


def _refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    told = capsys.readouterr()
    assert stopped.value.code == 2, told.err
    assert told.out == ""
    assert told.err.count("\n") == 1
    return told.err
