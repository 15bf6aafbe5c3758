from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cohortium import Federation
from cohortium.errors import CohortiumError, PluginError, RequestError, StudyError
from cohortium_descriptor import Descriptor
from cohortium_dirichlet import Dirichlet
from cohortium_dpresnet import DPResNet
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from cohortium_phantom import Phantom
from tests.support.federations import tiny_federation


def write(path: Path, text: str) -> Path:
    file = path / "s.toml"
    file.write_text(text)
    return file


def test_quick_start_gives_default_values() -> None:
    federation = Federation.read(None)
    assert (federation.sites, federation.privatizer.epsilon) == (10, 6.0)  # type: ignore[attr-defined]


def test_a_table_changes_the_keys_it_names(tmp_path: Path) -> None:
    file = write(tmp_path, "[privatizer]\nepsilon = 3\n[federation]\nsites = 5\n")
    federation = Federation.read(file)
    assert federation.sites == 5
    assert federation.privatizer == Gaussian(epsilon=3.0, delta=1.9e-4, clip_norm=7.0)


def test_another_name_drops_the_tables_other_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, '[partitioner]\nname = "quantity"\n')
    assert type(Federation.read(file).partitioner).__name__ == "Quantity"
    file = write(tmp_path, '[partitioner]\nname = "dirichlet"\nmin_size = 3\n')
    assert Federation.read(file).partitioner == Dirichlet(alpha=0.5, min_size=3)


def test_settings_override_study_in_order() -> None:
    federation = Federation.read(
        None,
        ["model.name=dpresnet", "model.width=16", "federation.rounds=3", "model.width=8",
         "trainer.optimizer_options.momentum=0.5", "trainer.optimizer_options.nesterov=true"],
    )  # fmt: skip
    assert federation.model == DPResNet(width=8)
    assert federation.rounds == 3
    assert federation.trainer == FedSGD(optimizer_options={"momentum": 0.5, "nesterov": True})


def test_written_study_reads_back_equal(tmp_path: Path) -> None:
    federation = Federation.read(None, ["model.name=dpresnet", "federation.sites=7"])
    assert Federation.read(write(tmp_path, federation.as_toml())) == federation


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[privatizer]\nepsilon = 'x'", r"s\.toml \[privatizer\] epsilon: expected float, got 'x'"),
        ("[privatizer]\nepsilon = -1.0", r"\[privatizer\].*'epsilon' must be > 0"),
        ("[privatizer]\nepsilom = 1.0", r"epsilom: .* no such parameter; did you mean epsilon"),
        ("[privatizr]\nepsilon = 1.0", r"no \[privatizr\]; did you mean privatizer"),
        ("[federation]\nsite = 3", r"\[federation\] site: .*did you mean sites"),
        ("[federation]\nsites = 0", r"\[federation\].*'sites' must be >= 1"),
        ("[federation]\nsites = true", r"\[federation\] sites: expected int, got True"),
        (
            "[privatizer]\nunit = 'person'",
            r"expected 'example' or 'patient' or 'site', got 'person'",
        ),
        (
            "[federation]\nsites = 3\nmin_contributors = 4",
            "min_contributors = 4 is more than the 3",
        ),
        ("federation = 3", "federation must be a table"),
        ("[model]\nname = 'dpresnt'", "no plugin offers the model 'dpresnt'; did you mean"),
        ("[model]\nname = 3", r"\[model\]: name must be a string"),
        ("[model\n", "not valid TOML"),
        (f"[federation]\nsites = {'9' * 5_000}", "not valid TOML: Exceeds the limit"),
        (f"[model]\nwidth = {'[' * 5_000}", "not valid TOML: .*recursion"),
        (f"[federation]\nsites{'.a' * 500} = 1", "nested deeper than 16"),
        (f"[federation]\nsites = {'[' * 40}{']' * 40}", "nested deeper than 16"),
        ("#" * 70_000, "larger than 65536 bytes"),
    ],
)
def test_errors_name_file_key_and_expectation(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(CohortiumError, match=words):
        Federation.read(write(tmp_path, text))


@pytest.mark.parametrize("setting", ["model", "model.width", "=3", "width=3"])
def test_a_setting_of_another_form_is_refused(setting: str) -> None:
    with pytest.raises(RequestError, match=r"write it as table\.key=value"):
        Federation.read(None, [setting])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (f"model.width{'.a' * 500}=1", "nested deeper than 16"),
        (f"model.width={'9' * 5_000}", "--set model.width=9{68}…: expected int, got '9{80}'…"),
        (f"model.width={'[' * 5_000}", "width=.*…: expected int"),
    ],
)
def test_oversized_setting_is_refused(setting: str, words: str) -> None:
    with pytest.raises(StudyError, match=words):
        Federation.read(None, ["model.name=cnn", setting])


def test_missing_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"cannot read the study .*No such file"):
        Federation.read(tmp_path / "none.toml")


def test_a_part_that_fills_no_role_is_refused() -> None:
    from cohortium import Federation

    with pytest.raises(StudyError, match=r"FedSGD is no model: a model has the methods build"):
        Federation(
            dataset="phantom", model=FedSGD(), trainer="fedsgd", privatizer="none",  # type: ignore[arg-type]
            aggregator="plain",
        )  # fmt: skip
    with pytest.raises(StudyError, match="pass an instance, not the class"):
        Federation(
            dataset="phantom", model=DPResNet, trainer="fedsgd", privatizer="none",  # type: ignore[arg-type]
            aggregator="plain",
        )  # fmt: skip
    with pytest.raises(PluginError, match="did you mean 'plain'"):
        Federation(
            dataset="phantom", model="cnn", trainer="fedsgd", privatizer="none", aggregator="plan"
        )


def test_a_part_may_hold_parts_of_its_own(tmp_path: Path) -> None:
    named = Federation.read(None, ["model.center_on=phantom"])
    assert named.model == Descriptor(center_on=Phantom())
    path = tmp_path / "study.toml"
    path.write_text('[model.center_on]\nname = "phantom"\nexamples = 30\n')
    tabled = Federation.read(path, ["model.center_on.seed=4"])
    assert tabled.model == Descriptor(center_on=Phantom(examples=30, seed=4))
    path.write_text(tabled.as_toml())
    assert Federation.read(path) == tabled


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("model.center_on=3", r"--set model.center_on=3: name a dataset, or give a table"),
        ("model.center_on=phantim", "offers the dataset 'phantim'; did you mean 'phantom'"),
        (
            "model.center_on={name='phantom', exmples=2}",
            r"--set .*} \[dataset\] exmples: .* examples",
        ),
        ("model.center_on={examples=2}", r"--set .*} \[dataset\]: name must be a string"),
    ],
)
def test_errors_in_an_inner_part_say_where(setting: str, words: str) -> None:
    with pytest.raises(CohortiumError, match=words):
        Federation.read(None, [setting])


@pytest.mark.parametrize(
    "name",
    [
        "sites", "rounds", "seed", "cohort_size", "min_contributors", "retries", "threads",
        "max_colluding", "evaluate_every", "reply_timeout", "holdout_fraction",
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", ["4", None, True])
def test_setting_of_another_type_is_named(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^'{name}' must be a (whole )?number, not {value!r}$"):
        tiny_federation(**{name: value})
