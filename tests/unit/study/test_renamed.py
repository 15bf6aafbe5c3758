"""An old name of a key, an option, a command or a variable is refused by the new one's name."""

from __future__ import annotations

from inspect import signature
from pathlib import Path

import click
import pytest
import typer

from cohortium import Federation, discover
from cohortium import grid as grids
from cohortium.cli import app, main
from cohortium.deployment.site_config import SiteConfig
from cohortium.deployment.site_policy import SitePolicy
from cohortium.errors import RequestError, StudyError
from cohortium.renamed import COMMANDS, KEYS, OPTIONS, VARIABLES
from cohortium.study.study import FEDERATION_KEYS

GRID = """
[grid.size]
s = { model.name = "cnn" }
[[grid.%s]]
%s = { size = "s" }
set = { federation.sites = 3 }
"""


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[federation]\ncohort = 3", "federation] cohort: .*; it is called cohort_size now."),
        ("[federation]\nholdout = 0.1", "it is called holdout_fraction now."),
        ("[privatizer]\nclip = 7.0", "privatizer] clip: .*; it is called clip_norm now."),
        (
            '[privatizer]\nagainst = "everyone"',
            'called noise now; "everyone" is "local" now, and "coordinator" is "distributed".',
        ),
        ("[trainer]\nturns = true", "it is called rotations now."),
        ("[aggregator]\nthreshold = 4", "it is called reconstruction_threshold now."),
        ("[model]\nmoments = true", "it is called private_whitening now."),
        ('[engine]\nname = "flower"\npoll = 1.0', "it is called poll_interval now."),
    ],
)
def test_study_refuses_old_key_with_new_name(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "study.toml"
    path.write_text(text)
    with pytest.raises(StudyError, match=sentence):
        Federation.read(path)


def test_setting_refuses_old_key_with_new_name() -> None:
    with pytest.raises(
        StudyError, match=r"--set trainer\.prelude=3: .*called statistics_rounds now"
    ):
        Federation.read(None, ["trainer.prelude=3"])


@pytest.mark.parametrize(
    ("names", "sentence"),
    [(("where", "match"), "called override now"), (("override", "cells"), "called match now")],
)
def test_grid_refuses_old_key(tmp_path: Path, names: tuple[str, str], sentence: str) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(GRID % names)
    with pytest.raises(StudyError, match=sentence):
        grids.read(path)


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_command_refuses_old_option(
    command: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, option, "x"])
    assert stop.value.code == 2
    assert f"{option} is called {OPTIONS[command, option]} now." in capsys.readouterr().err


def test_old_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["deal", "--out", "x"])
    assert "`cohortium deal` is called `cohortium rehearse` now." in capsys.readouterr().err


@pytest.mark.parametrize("variable", VARIABLES)
def test_discovery_refuses_old_variable(variable: str) -> None:
    with pytest.raises(RequestError, match=f"{variable} is called {VARIABLES[variable]} now"):
        discover({variable: "cohortium"})


def test_new_names_exist() -> None:
    catalog = discover()
    known = {new for news in KEYS.values() for new in news}
    known -= {"override", "match"}
    have = {*FEDERATION_KEYS, *signature(SiteConfig).parameters, *signature(SitePolicy).parameters}
    for offering in catalog.entries:
        have |= {*signature(offering.offer.factory).parameters}
    assert known <= have
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    options = {
        (name, option)
        for name, command in group.commands.items()
        for parameter in command.params
        for option in parameter.opts
    }
    assert {(command, new) for (command, _), new in OPTIONS.items()} <= options
    assert set(COMMANDS.values()) <= group.commands.keys()
