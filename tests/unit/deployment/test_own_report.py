"""`cohortium own-report`: a hospital's exact figures beside a model that it trains alone."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attrs import evolve

from cohortium import Federation, cli, parameters
from cohortium.data.group_scores import MIN_IMAGES, paired_difference
from cohortium.data.predictions import Predictions
from cohortium.deployment import rehearsal
from cohortium.deployment.own_report import own_figures
from cohortium.deployment.own_scores import SiteScore, read_predictions, read_scores
from cohortium.deployment.site_config import SiteConfig
from cohortium.errors import CohortiumError, RequestError, RunError
from cohortium.learning.evaluation import Evaluation
from cohortium.plugin import Multiclass
from cohortium.study.measurement import EvaluationPlan
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from tests.support.corridor import serving
from tests.support.federations import QuadrantImages, tiny_federation
from tests.support.flipped_bytes import refusals

SITES = 2


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hospitals that have trained and evaluated, and the run."""
    folder = tmp_path_factory.mktemp("deployed")
    simulated = tiny_federation(
        dataset=QuadrantImages(160), sites=SITES, rounds=4, threads=1, holdout_fraction=0.4,
        privatizer=Gaussian(epsilon=8.0, delta=1e-3), trainer=FedSGD(sampling_rate=1.0),
        evaluation=EvaluationPlan(parts=("accuracy",), every=2),
    )  # fmt: skip
    rehearsal.write_rehearsal(simulated.prepare(), folder / "all", engine="inline")
    with serving(folder / "all") as corridor:
        Federation.read(folder / "all" / "study.toml").run(folder / "run", engine=corridor)
    return folder


@pytest.fixture
def site_file(deployed: Path) -> Path:
    return deployed / "all" / "site-1" / "site.toml"


def spoken(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """What a command exits with and prints."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["own-report", *arguments])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def cell(page: str, row: str) -> float:
    found = re.search(rf'<tr id="{row}">.*?<data value="([^"]+)"', page, re.DOTALL)
    assert found is not None
    return float(found[1])


def test_page_has_both_models_and_their_difference(
    deployed: Path, site_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, released = tmp_path / "own.html", deployed / "run" / "evaluation" / "result.json"
    ledger = (site_file.parent / "ledger.sqlite").read_bytes()
    code, told, errors = spoken(
        capsys, str(site_file), "--out", str(out), "--result", str(released),
        "--set", "trainer.learning_rate=0.3",
    )  # fmt: skip
    assert code == 0, errors
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert f"the page stays here: {out}" in told
    assert "round 4/4" in errors
    page = out.read_text("utf-8")
    assert "stay on this machine" in page
    assert "://" not in page
    (stored, *_) = read_scores(site_file.parent / "evaluations")
    assert cell(page, "federated") == stored.scores.main
    assert cell(page, "difference") == pytest.approx(cell(page, "federated") - cell(page, "alone"))
    assert "trainer.learning_rate=0.3" in page
    assert 'id="released"' in page
    assert "It is of other weights" not in page
    assert all(f'<th scope="row">{name}</th>' in page for name in "abcd")
    # Nothing was charged.
    assert (site_file.parent / "ledger.sqlite").read_bytes() == ledger
    # The same command may write the page again.
    assert spoken(capsys, str(site_file), "--out", str(out), "--no-training", "--quiet")[0] == 0
    page = out.read_text("utf-8")
    assert 'id="no-training"' in page
    assert 'id="alone"' not in page


def test_alone_is_the_study_at_one_site(site_file: Path) -> None:
    config = SiteConfig.read(site_file)
    figures = own_figures(config)
    images = config.load_images()
    assert images.test is not None

    class Own:
        def load(self) -> Any:
            return evolve(images.train, test=images.of("test").train, validation=None)

    federation = tiny_federation(
        dataset=Own(), sites=1, rounds=4, threads=1, trainer=FedSGD(sampling_rate=1.0)
    )
    result = federation.run()
    assert figures.alone is not None
    assert result.scores is not None
    assert figures.alone.scores.metrics == result.scores.metrics
    run_config = federation.prepare().run_config
    net = run_config.network()
    parameters.load_state_dict(net, result.weights)
    watch = Evaluation.of(images.test.train, run_config.spec, run_config.model, "cpu")
    assert watch is not None
    assert figures.difference is not None
    assert figures.difference.score == figures.federated.scores.main - watch.score(net).main


def test_other_figures_are_refused_in_one_sentence(
    deployed: Path, site_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.html"
    mine.write_text("mine")
    for arguments, words in (
        (["--out", str(mine)], "is no page of own figures"),
        (["--session", "zz"], "whose session begins with zz"),
        (["--set", "privatizer.epsilon=1"], "has no [privatizer]"),
        (["--set", "trainer.name=nothing"], "nothing"),
        (["--set", "federation.sits=3"], "sits"),
        (["--result", str(deployed / "run" / "result.json")], "holds no scores of hospitals"),
    ):
        out = [] if "--out" in arguments else ["--out", str(tmp_path / "x.html")]
        code, told, errors = spoken(capsys, str(site_file), *arguments, *out, "--quiet")
        assert (code, told) == (2, ""), errors
        assert len(errors.splitlines()) == 1
        assert words in errors
    assert mine.read_text() == "mine"
    assert not (tmp_path / "x.html").exists()


def test_damaged_or_foreign_files_are_refused(deployed: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "site"
    shutil.copytree(deployed / "all" / "site-1", copy, ignore=shutil.ignore_patterns("*.sock"))
    config = SiteConfig.read(copy / "site.toml")
    path = copy / "evaluations" / f"{read_scores(copy / 'evaluations')[0].name}.json"
    text = path.read_text()
    path.write_text(text.replace('"images_sha256": "', '"images_sha256": "0'))
    with pytest.raises(RequestError, match="the test images are not those of the evaluation"):
        own_figures(config)
    path.write_text(re.sub(r'"study": ".*"', '"study": ""', text))
    with pytest.raises(RequestError, match="has not stored the study"):
        own_figures(config)
    for damaged in ("{}", "[", text.replace('"images": ', '"images": "x", "a": ')):
        path.write_text(damaged)
        with pytest.raises(CohortiumError, match="is damaged"):
            own_figures(config, trains=False)
    path.write_text(text)
    path.with_suffix(".npz").write_bytes(b"PK")
    with pytest.raises(CohortiumError, match="is damaged"):
        own_figures(config, trains=False)
    path.with_suffix(".npz").unlink()
    assert own_figures(config, trains=False).federated.main is None


def answers(right: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> Predictions:
    values = np.eye(2)[np.where(right, labels, 1 - labels)] * 0.8 + 0.1
    return Predictions(values, labels, Multiclass(("a", "b")))


def test_paired_interval_is_that_of_the_differing_images() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 400)
    hard = rng.random(400) < 0.4
    better = hard & (rng.random(400) < 0.2)
    first, second = answers(~hard | better, labels), answers(~hard, labels)
    found = paired_difference(first, second, None, np.random.default_rng(2))
    assert found.score == pytest.approx(better.mean())
    assert found.low is not None
    assert found.high is not None
    assert 0 < found.low < better.mean() < found.high
    # Normal approximation of a paired share.
    width = 2 * 1.96 * np.sqrt(better.mean() * (1 - better.mean()) / 400)
    assert found.high - found.low == pytest.approx(width, rel=0.2)
    # Ten images of each patient that are right together tell as much as one of each.
    whole = [np.repeat(part[:40], 10) for part in (~hard | better, ~hard, labels)]
    alike = answers(whole[0], whole[2]), answers(whole[1], whole[2])
    patients = np.repeat(np.arange(40), 10)
    wide = paired_difference(*alike, patients, np.random.default_rng(2))
    narrow = paired_difference(*alike, None, np.random.default_rng(2))
    assert wide.low is not None
    assert wide.high is not None
    assert narrow.low is not None
    assert narrow.high is not None
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    few = answers(~hard[: MIN_IMAGES - 1], labels[: MIN_IMAGES - 1])
    assert paired_difference(few, few, None, rng).low is None


def test_session_name_that_comes_again_loses_no_scores(tmp_path: Path) -> None:
    """The coordinator chooses the session, and may choose one twice."""
    scores = answers(np.ones(12, bool), np.arange(12) % 2).scores
    first = SiteScore(
        session=bytes(16), site=0, dataset_id="d", weights_sha256="a" * 64, scores=scores
    )
    values = np.random.default_rng(0).random((12, 2))
    paths = [first.write(tmp_path, values)]
    bytes_of_first = paths[0].read_bytes()
    paths.append(evolve(first, weights_sha256="b" * 64).write(tmp_path, values + 1))
    paths.append(evolve(first, images_sha256="c" * 64).write(tmp_path, values + 2))
    assert [path.stem for path in paths] == ["0" * 32, "0" * 32 + "-2", "0" * 32 + "-3"]
    assert paths[0].read_bytes() == bytes_of_first
    assert evolve(first, weights_sha256="b" * 64).write(tmp_path, values + 1) == paths[1]
    stored = read_scores(tmp_path)
    assert len(stored) == 3
    assert {each.name for each in stored} == {path.stem for path in paths}
    for shift, path in enumerate(paths):
        assert np.array_equal(np.asarray(read_predictions(tmp_path, path.stem)), values + shift)
    paths[0].write_bytes(b"{")  # damaged, and still nobody's to overwrite
    assert first.write(tmp_path, values).stem == "0" * 32 + "-4"
    assert paths[0].read_bytes() == b"{"


def test_wrong_byte_in_predictions_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path, values = tmp_path / "ab.npz", np.random.default_rng(0).random((40, 3))
    np.savez_compressed(path, predictions=values)
    assert np.array_equal(np.asarray(read_predictions(tmp_path, "ab")), values)
    found = refusals(path, lambda: read_predictions(tmp_path, "ab"), RunError, every=3)
    assert set(found) == {f"{path} is damaged; move it elsewhere."}
    assert read_predictions(tmp_path, "cd") is None
