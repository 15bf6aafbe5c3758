"""`cohortium adapt`: a model fine-tuned at a hospital, which must not leave it."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from cohortium import Federation
from cohortium.cli import app
from cohortium.crypto.randomness import Seeds
from cohortium.data.examples import Examples
from cohortium.deployment import rehearsal
from cohortium.deployment.site_config import SiteConfig
from cohortium.errors import CohortiumError, RequestError, StudyError
from cohortium.inference.classifier import Classifier
from cohortium.inference.personal import Adaptation
from cohortium.learning.candidates import Candidate, Unchosen
from cohortium.learning.ensemble import mix
from cohortium.learning.fine_tuning import MIN_UNITS, FineTuned, FineTuning
from cohortium.runs.evaluate import final_weights
from cohortium.runs.result import Result
from cohortium.storage.atomic_folder import atomic_folder
from cohortium.storage.trainer_state import TrainerState, encode_trainer_state
from cohortium_descriptor import Descriptor
from cohortium_fedavg import Ditto, FedPer
from cohortium_gaussian import Gaussian
from cohortium_module import Module
from tests.support.corridor import serving
from tests.support.federations import QuadrantImages, tiny_federation

WARNING = "this model must not leave this hospital"
NETWORK = Module(module="tests.support.federations:SmallConvNet")
LINEAR = Descriptor(bins=4, edge_bins=4, radii=(1.0,))


def site_images(n: int = 40, seed: int = 9) -> Examples:
    """Images of a hospital that has two of the four classes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    images = rng.integers(0, 120, (n, 1, 8, 8))
    for k in range(2):
        images[labels == k, :, :4, 4 * k : 4 * k + 4] += 80
    return Examples(images.astype(np.uint8), labels)


@pytest.fixture(scope="module")
def private_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    tiny_federation(
        model=NETWORK, sites=2, rounds=2, threads=1, privatizer=Gaussian(epsilon=8.0, delta=1e-3)
    ).run(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = site_images()
    path = tmp_path_factory.mktemp("images") / "own.npz"
    np.savez(path, train_images=found.images[:, 0], train_labels=found.labels)
    return path


def spoken(*arguments: str | Path) -> tuple[int, str, str]:
    """What a command exits with and prints."""
    done = CliRunner().invoke(app, [str(each) for each in arguments])
    if done.exception is not None and isinstance(done.exception, CohortiumError):
        return done.exception.exit_code, done.stdout, f"cohortium: {done.exception}"
    return done.exit_code, done.stdout, done.stderr


def from_file(path: Path, *more: str) -> list[str]:
    named = ("name=npz", f"path={path}", *more)
    return [part for each in named for part in ("--set", f"dataset.{each}")]


CLASSES = 'classes=["a","b","c","d"]'
QUICK = ("--folds", "2", "--quiet")


def tuned(
    run: Path, examples: Examples, alone: Callable[..., nn.Module] | None = None, **changes: Any
) -> FineTuned:
    classifier = Classifier.open(run)
    recipe = FineTuning(**{"epochs": 4, "learning_rate": 0.01, "folds": 2, **changes})
    return recipe.fine_tune(
        classifier.net, examples, classifier.spec, classifier.model, Seeds(1), alone=alone
    )


class ByColumn(nn.Module):
    """A classifier of `site_images` that knows which corner is bright, or answers by chance."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def forward(self, images: Tensor) -> Tensor:
        corner = images[:, 0, :4, :4].mean((1, 2)) - images[:, 0, :4, 4:].mean((1, 2))
        logits = torch.full((len(images), 4), -20.0)
        logits[:, 0], logits[:, 1] = self.strength * corner, -self.strength * corner
        return logits


@pytest.mark.parametrize("learning_rate", [0.01, 1e6])
@pytest.mark.parametrize("learn", ["all", "head"])
def test_result_is_no_worse_than_the_start_by_cross_validation(
    private_run: Path, learning_rate: float, learn: str
) -> None:
    before = Classifier.open(private_run)
    found = tuned(private_run, site_images(), learning_rate=learning_rate, learn=learn)
    start = found.candidates[0]
    assert start.kind == "start"
    assert found.choice.score >= start.score
    assert found.choice.loss <= start.loss
    assert all(bool(torch.isfinite(p).all()) for p in found.net.parameters())
    # The start itself is unchanged.
    assert before.sha256 == Classifier.open(private_run).sha256


def with_form(net: nn.Module, like: nn.Module) -> nn.Module:
    """`net`, with the parameters of `like` in name and shape, which it does not use."""
    for name, parameter in like.named_parameters():
        inner = net
        for part in name.split(".")[:-1]:
            if not hasattr(inner, part):
                inner.add_module(part, nn.Module())
            inner = inner.get_submodule(part)
        inner.register_parameter(name.split(".")[-1], nn.Parameter(parameter.detach().clone()))
    return net


@pytest.mark.parametrize(
    ("strength", "chosen"), [(30.0, "alone"), (0.1, "ensemble"), (-30.0, "fine-tuned")]
)
def test_better_network_is_chosen(private_run: Path, strength: float, chosen: str) -> None:
    like = Classifier.open(private_run).net
    seen: list[int] = []

    def alone(examples: Examples, _: object) -> nn.Module:
        seen.append(len(examples))
        return with_form(ByColumn(strength), like)

    found = tuned(private_run, site_images(), alone, epochs=12, learning_rate=0.02)
    assert seen == [40, 20, 20]
    kinds = [each.kind for each in found.candidates]
    assert kinds == ["start", *["fine-tuned"] * 12, "ensemble", "alone"]
    assert found.choice.kind == chosen
    assert found.candidates[-1].difference == 0
    assert found.not_alone == ""
    assert found.guess_loss == pytest.approx(math.log(4))


@pytest.mark.parametrize("strength", [30.0, 0.1, 0.02, -30.0])
@pytest.mark.parametrize("margin", [0.0, 1.0, 50.0])
def test_unchosen_lowest_loss_fails_the_rule(
    private_run: Path, strength: float, margin: float
) -> None:
    like = Classifier.open(private_run).net

    def alone(*_: object) -> nn.Module:
        return with_form(ByColumn(strength), like)

    found = tuned(private_run, site_images(), alone, learning_rate=0.02, margin=margin)
    lowest = min(found.candidates, key=lambda each: each.loss)
    missed = found.unchosen
    if missed is None:
        assert found.choice.loss == lowest.loss
        return
    assert found.candidates[missed.position] is lowest
    other = found.candidates[missed.other]
    assert other is found.choice or found.choice.loss < other.loss
    assert missed.loss == pytest.approx(lowest.loss - other.loss)
    assert missed.score == pytest.approx(lowest.score - other.score)
    is_low = missed.loss + missed.needed * missed.loss_error < 0
    gain = missed.score - missed.needed * missed.score_error if missed.is_strict else missed.score
    assert not (is_low and (gain > 0 if missed.is_strict else gain >= 0))


class Fixed(ByColumn):
    """A network whose parameters could learn, and have gradients of zero."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + 0 * sum(p.sum() for p in self.parameters())


class Overconfident(Fixed):
    """Sure of each answer, and wrong if the last pixel is one of the 3 darkest of the lower 32."""

    def forward(self, images: Tensor) -> Tensor:
        darker = images[:, 0, 4:].flatten(1) < images[:, 0, 7, 7, None]
        sign = torch.where(darker.sum(1) < 3, -1.0, 1.0)
        logits = super().forward(images)
        return torch.cat([logits[:, :2].sign() * 60 * sign[:, None], logits[:, 2:]], 1)


@pytest.mark.parametrize("has_local_only", [True, False])
def test_reference_that_is_worse_than_guessing_has_no_margin(
    private_run: Path, has_local_only: bool
) -> None:
    classifier = Classifier.open(private_run)
    weak = with_form(Overconfident(1.0), classifier.net)
    good = with_form(Fixed(5.0), classifier.net)
    found = FineTuning(epochs=1, folds=2).fine_tune(
        good if has_local_only else weak,
        site_images(),
        classifier.spec,
        classifier.model,
        Seeds(1),
        alone=(lambda *_: weak) if has_local_only else None,
    )
    assert found.guess_loss is not None
    reference = found.candidates[-1 if has_local_only else 0]
    assert reference.loss > found.guess_loss
    assert reference.score > 0.8
    if not has_local_only:
        assert found.choice is reference
        return
    assert found.choice.kind == "start"
    assert (found.choice.score, found.unchosen) == (1.0, None)
    # With its margins it would have stayed out, and the mix would have been chosen.
    assert found.choice.difference + 3 * found.choice.standard_error > 0
    ensemble = found.candidates[-2]
    assert ensemble.difference + ensemble.standard_error < 0
    assert ensemble.loss > found.guess_loss


def test_lower_score_does_not_replace_a_weak_reference(private_run: Path) -> None:
    classifier = Classifier.open(private_run)
    weak = with_form(Overconfident(1.0), classifier.net)
    unsure = with_form(Fixed(-0.01), classifier.net)
    found = FineTuning(epochs=1, folds=2).fine_tune(
        unsure,
        site_images(),
        classifier.spec,
        classifier.model,
        Seeds(1),
        alone=lambda *_: weak,
    )
    assert found.guess_loss is not None
    assert found.candidates[0].loss < found.guess_loss < found.candidates[-1].loss
    assert found.choice.score >= found.candidates[-1].score > found.candidates[0].score
    assert found.unchosen is not None
    assert (found.unchosen.position, found.unchosen.needed) == (0, 0)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_start_without_a_finite_loss_is_refused(
    private_run: Path, images: Path, tmp_path: Path, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the comparison had no meaning, and its record could not be read."""
    opened = Classifier.open

    class Overflowing(Fixed):
        def forward(self, images: Tensor) -> Tensor:
            return torch.cat([super().forward(images[:-1]), torch.full((1, 4), value)])

    def overflowing(*arguments: Any, **options: Any) -> Classifier:
        found = opened(*arguments, **options)
        return evolve(found, net=with_form(Overflowing(1.0), found.net))

    monkeypatch.setattr(Classifier, "open", overflowing)
    arguments = (*from_file(images, CLASSES), *QUICK, "--epochs", "1")
    code, _, told = spoken("adapt", private_run, *arguments, "--out", tmp_path / "ours")
    assert code == RequestError.exit_code
    assert "the model's loss is no finite number on 1 of 40 images" in told
    assert not (tmp_path / "ours").exists()


def record(**changes: Any) -> Adaptation:
    """An adaptation, in which the fine-tuned network has the lowest loss and is not chosen."""
    known: dict[str, Any] = {
        "start": "global", "start_weights_sha256": "", "weights_sha256": "",
        "start_guarantee": None, "learn": "all", "max_epochs": 3, "learning_rate": 0.01,
        "batch_size": 32, "pull": 0.0, "margin": 1.0, "seed": 1, "metric": "accuracy",
        "candidates": (
            Candidate(kind="start", score=0.5, loss=1.6, difference=-0.3, standard_error=0.2),
            Candidate(
                kind="fine-tuned", epochs=3, score=0.7, loss=1.2, difference=-0.7,
                standard_error=0.3,
            ),
            Candidate(kind="alone", score=0.6, loss=1.9),
        ),
        "chosen": 2, "share": 0.25, "networks": 1, "not_alone": "", "images": 40, "folds": 5,
        "written": "", "guess_loss": math.log(8),
    }  # fmt: skip
    return Adaptation(**known | changes)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((-0.7, 0.3, 0.1, 0.02), "that loss is 2.33 standard errors below that of"),
        ((-0.7, 0.1, 0.1, 0.05), "its accuracy is 2.00 standard errors above that of"),
        ((-0.7, 0.1, -0.1, 0.05), 'its accuracy is lower than that of "trained alone".'),
        ((-0.7, 0.1, 0.0, 0.0), 'its accuracy is no higher than that of "trained alone".'),
    ],
)
def test_reason_tells_the_missing_standard_errors(numbers: tuple[float, ...], words: str) -> None:
    names = ("loss", "loss_error", "score", "score_error")
    missed = Unchosen(
        position=1, other=2, needed=3.0, is_strict=True, **dict(zip(names, numbers, strict=True))
    )
    told = record(unchosen=missed).reason
    assert f'"after 3 epochs here" has the lowest loss but is not chosen: {words}' in told
    assert ("and more than 3 are needed." in told) == ("standard errors" in words)


def test_loss_above_that_of_guessing_is_told() -> None:
    assert record().warning == ""
    told = record(guess_loss=1.5)
    assert "The chosen model is worse than guessing: its loss is 1.9000" in told.warning
    assert "so no margin protects it, but each candidate has" in told.reason
    chosen = record(guess_loss=1.5, chosen=1)
    assert chosen.warning == ""
    assert "of the candidates with no lower score, the lowest loss is chosen." in chosen.reason
    assert record(guess_loss=None).warning == ""


def test_reference_that_diverged_brings_advice(private_run: Path) -> None:
    advice = "a smaller trainer.learning_rate in a study of this hospital alone, or leave"
    assert advice in record(guess_loss=1.5).reason
    assert advice in record(guess_loss=1.5, chosen=1).reason
    assert advice not in record().reason
    start_alone = record(guess_loss=1.5).candidates[:1]
    assert advice not in record(guess_loss=1.5, candidates=start_alone, chosen=0).reason
    infinite = with_form(Fixed(math.inf), Classifier.open(private_run).net)
    told = tuned(private_run, site_images(), lambda *_: infinite).not_alone
    assert told.startswith("its loss is infinite. ")
    assert advice in told


def test_site_that_cannot_train_alone_says_why(private_run: Path) -> None:
    def too_few(*_: object) -> nn.Module:
        raise StudyError("there are too few images.")

    def other_form(*_: object) -> nn.Module:
        return nn.Linear(2, 2)

    for alone, reason in ((too_few, "there are too few images"), (other_form, "another form")):
        found = tuned(private_run, site_images(), alone)
        assert reason in found.not_alone
        assert {each.kind for each in found.candidates} == {"start", "fine-tuned"}


def test_mix_of_linear_layers_is_one_layer() -> None:
    first, second, inputs = nn.Linear(3, 2), nn.Linear(3, 2), torch.randn(5, 3)
    both = mix(first, second, 0.25)
    assert type(both) is nn.Linear
    torch.testing.assert_close(both(inputs), 0.75 * first(inputs) + 0.25 * second(inputs))
    deep = mix(nn.Sequential(nn.ReLU(inplace=True), first), nn.Sequential(second), 0.25)
    expected = 0.75 * first(inputs.relu()) + 0.25 * second(inputs)
    torch.testing.assert_close(deep(inputs.clone()), expected)


def test_head_leaves_every_other_layer(private_run: Path) -> None:
    start = dict(Classifier.open(private_run).net.named_parameters())
    found = tuned(private_run, site_images(), learn="head", learning_rate=0.05)
    assert found.choice.kind == "fine-tuned"
    moved = {n for n, p in found.net.named_parameters() if not torch.equal(p, start[n])}
    assert moved == {"4.weight", "4.bias"}


def test_a_strong_pull_keeps_the_weights_near_the_start(private_run: Path) -> None:
    from cohortium import parameters

    start = parameters.flatten(Classifier.open(private_run).net)
    free, held = (
        parameters.flatten(tuned(private_run, site_images(), pull=pull).net)
        for pull in (0.0, 100.0)
    )
    assert float((held - start).norm()) < float((free - start).norm())


def test_a_patient_is_on_one_side(private_run: Path) -> None:
    import attrs

    owners = np.repeat(np.arange(MIN_UNITS), 5)
    seen: list[set[int]] = []

    def alone(examples: Examples, _: object) -> nn.Module:
        assert examples.patients is not None
        assert len(examples) == 5 * len(set(examples.patients))
        seen.append(set(examples.patients))
        return with_form(ByColumn(30.0), Classifier.open(private_run).net)

    tuned(private_run, attrs.evolve(site_images(), patients=owners), alone)
    assert [len(each) for each in seen] == [8, 4, 4]
    assert seen[1] | seen[2] == set(range(MIN_UNITS))
    few = attrs.evolve(site_images(), patients=np.repeat(np.arange(4), 10))
    with pytest.raises(RequestError, match="there are 4 patients, and a fine-tuning needs 8"):
        tuned(private_run, few)


def test_adapted_model_is_marked_and_stays(private_run: Path, images: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in private_run.rglob("*") if path.is_file()}
    common = (*from_file(images, CLASSES), *QUICK, "--epochs", "3", "--rate", "0.01")
    for name in ("one", "two"):
        code, told, errors = spoken("adapt", private_run, "--out", tmp_path / name, *common)
        assert code == 0, errors
        assert WARNING in errors
        assert "the model stays here" in told
        assert 'But if this hospital took part in the run, "the run\'s model" has learned' in told
    one, two = tmp_path / "one", tmp_path / "two"
    weights = [(each / "weights" / "last.safetensors").read_bytes() for each in (one, two)]
    assert weights[0] == weights[1]
    assert {path: path.read_bytes() for path in before} == before
    for path in (one, *one.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)

    code, told, errors = spoken("predict", one, images, "--split", "train", "--json")
    assert (code, len(json.loads(told))) == (0, 40), errors
    assert WARNING in errors

    code, told, errors = spoken("export", one)
    assert code == 0, errors
    assert WARNING in errors
    assert stat.S_IMODE((one / "export").stat().st_mode) == 0o700
    card = (one / "export" / "README.md").read_text("utf-8")
    first = card.splitlines()[2]
    assert first.startswith("> **Do not let this model leave this hospital.** It was trained")
    assert "without noise on this hospital's images" in first
    epsilon = json.loads((private_run / "result.json").read_text())["guarantee"]["epsilon"]
    assert f"a run with ε = {epsilon:.4g}" in " ".join(card.split())
    assert "**None for this model.**" in card
    assert "This hospital: 40 images, by which the candidates were compared." in card
    assert "The sites of the run: " in card
    assert "accuracy was never measured" not in card
    assert "was never measured on others" in card
    assert 'But if this hospital took part in the run, "the run\'s model" has learned' in card

    code, told, errors = spoken("report", one)
    assert code == 0, errors
    assert WARNING in errors
    page = (one / "report.html").read_text("utf-8")
    assert "This model must not leave this hospital." in page
    assert 'id="chosen"' in page
    assert "But if this hospital took part in the run, " in page
    assert stat.S_IMODE((one / "report.html").stat().st_mode) == 0o600


def test_other_requests_are_refused_in_one_sentence(
    private_run: Path, images: Path, tmp_path: Path
) -> None:
    own, few, wide = from_file(images, CLASSES), tmp_path / "few.npz", tmp_path / "wide.npz"
    found = site_images(5)
    np.savez(few, train_images=found.images[:, 0], train_labels=found.labels)
    np.savez(wide, train_images=np.zeros((20, 9, 9), np.uint8), train_labels=np.arange(20) % 4)
    there = tmp_path / "there"
    there.mkdir()
    done = tmp_path / "done"
    exported = tmp_path / "exported"
    assert spoken("export", private_run, "--out", exported)[0] == 0
    quick = ("--epochs", "1", "--no-alone", "--quiet")
    assert spoken("adapt", private_run, "--out", done, *own, *quick)[0] == 0
    refused: list[tuple[tuple[str | Path, ...], str]] = [
        ((private_run,), "name the hospital's images"),
        ((private_run, *own, "--out", there), "exists already"),
        ((private_run, *from_file(images, 'classes=["a","b","c","x"]')), "the label 'x' is none"),
        ((private_run, *from_file(wide, CLASSES)), "of shape (1, 9, 9), not uint8"),
        ((private_run, *from_file(few, CLASSES)), "there are 5 images"),
        ((private_run, *own, "--rate", "-1"), "--rate"),
        ((private_run, *own, "--folds", "1"), "--folds"),
        ((private_run, *own, "--margin", "-1"), "--margin"),
        ((private_run, *own, "--set", "model.name=cnn"), "only [dataset] names"),
        ((done, *own), "is adapted already"),
        ((tmp_path, *own), f"holds folders of runs; give one of them, such as {done}"),
        ((exported, *own), "is an exported model, for use without Cohortium"),
    ]
    for arguments, words in refused:
        out: tuple[str | Path, ...] = () if "--out" in arguments else ("--out", tmp_path / "new")
        code, told, errors = spoken("adapt", *arguments, *out, *quick)
        assert code == 2, (arguments, errors)
        assert told == ""
        assert len(errors.strip().splitlines()) == 1
        assert words in errors
    assert not (tmp_path / "new").exists()
    assert list(there.iterdir()) == []
    with pytest.raises(RequestError, match="cannot be evaluated at other sites"):
        final_weights(done)
    code, told, errors = spoken("evaluate", done)
    assert (code, told) == (2, "")
    assert "cannot be evaluated at other sites" in errors
    for option in ("--public", "--parties"):
        code, told, errors = spoken("serve", done, option, tmp_path / "for-others")
        assert (code, told) == (2, "")
        assert "must not leave its hospital; it cannot be served to others" in errors


def test_altered_records_are_refused(private_run: Path, images: Path, tmp_path: Path) -> None:
    done = tmp_path / "done"
    own = from_file(images, CLASSES)
    quick = ("--epochs", "1", "--no-alone", *QUICK)
    assert spoken("adapt", private_run, "--out", done, *own, *quick)[0] == 0
    mark = done / "personal.json"
    text = mark.read_text("utf-8")
    for damaged in ("", "{}", text.replace('"format": 2', '"format": 1'), text[:-9]):
        mark.write_text(damaged, "utf-8")
        with pytest.raises(CohortiumError, match=r"personal\.json is"):
            Classifier.open(done)
    lost = json.loads(text)
    lost["unchosen"] = dict.fromkeys(("loss_error", "score", "score_error", "needed"), 0.0) | {
        "position": 99, "other": 0, "loss": -1.0, "is_strict": False,
    }  # fmt: skip
    mark.write_text(json.dumps(lost), "utf-8")
    with pytest.raises(CohortiumError, match=r"personal\.json is of another form"):
        Classifier.open(done)
    mark.write_text(text, "utf-8")
    shutil.copy(private_run / "weights" / "last.safetensors", done / "weights")
    shutil.copy(private_run / "result.json", done)
    if Classifier.open(private_run).sha256 not in text.split("weights_sha256")[2]:
        with pytest.raises(CohortiumError, match="are not those of"):
            Classifier.open(done)


@pytest.fixture(scope="module", params=[FedPer(), Ditto()], ids=["fedper", "ditto"])
def personal_run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Result:
    return tiny_federation(model=NETWORK, trainer=request.param, sites=2, rounds=2, threads=1).run(
        tmp_path_factory.mktemp("personal") / "run"
    )


def state_of(run: Result) -> Path:
    assert run.folder is not None
    return run.folder / "trainer_state" / "site-1.safetensors"


def test_a_sites_own_network_is_used_and_marked(
    personal_run: Result, images: Path, tmp_path: Path
) -> None:
    folder, state = personal_run.folder, state_of(personal_run)
    assert folder is not None
    own = Classifier.open(folder, state=state)
    assert own.sha256 != Classifier.open(folder).sha256
    assert WARNING in (own.personal.notice if own.personal else "")
    code, _, errors = spoken("predict", folder, images, "--split", "train", "--state", state)
    assert code == 0, errors
    assert WARNING in errors
    assert "with --out" in spoken("export", folder, "--state", state)[2]
    out = tmp_path / "export"
    code, _, errors = spoken("export", folder, "--state", state, "--out", out)
    assert code == 0, errors
    assert (out / "README.md").read_text("utf-8").splitlines()[2].startswith("> **Do not let")
    code, told, errors = spoken(
        "adapt", folder, "--state", state, "--out", tmp_path / "adapted",
        *from_file(images, CLASSES), "--epochs", "1", "--folds", "2",
    )  # fmt: skip
    assert code == 0, errors
    assert 'But "the site\'s own network" has learned from its images before' in told


def test_site_file_names_images_and_state(tmp_path: Path) -> None:
    simulated = tiny_federation(
        dataset=QuadrantImages(64), trainer=FedPer(), sites=2, rounds=2, threads=1
    )
    rehearsal.write_rehearsal(simulated.prepare(), tmp_path / "all", engine="inline")
    run, site_file = tmp_path / "run", tmp_path / "all" / "site-1" / "site.toml"
    with serving(tmp_path / "all") as corridor:
        Federation.read(tmp_path / "all" / "study.toml").run(run, engine=corridor)
    before = {path: path.read_bytes() for path in site_file.parent.rglob("*") if path.is_file()}
    out = tmp_path / "ours"
    code, told, errors = spoken("adapt", run, site_file, "--out", out, "--epochs", "1")
    assert code == 0, errors
    assert "starts from the site's own network in" in errors
    assert "fold 5/5" in errors
    assert "the site's own network" in told
    assert "trained alone" in told
    assert "No model was trained alone" not in told
    record = json.loads((out / "personal.json").read_text("utf-8"))
    images = len(SiteConfig.read(site_file).load_images().train.train)
    assert (record["start"], record["images"], record["folds"]) == ("own", images, 5)
    assert [each["kind"] for each in record["candidates"]] == [
        "start", "fine-tuned", "ensemble", "alone",
    ]  # fmt: skip
    assert Classifier.open(out).sha256 == record["weights_sha256"]
    # Nothing is charged or recorded at the site.
    assert {p: p.read_bytes() for p in site_file.parent.rglob("*") if p.is_file()} == before
    code, told, errors = spoken(
        "adapt", run, site_file, "--set", "dataset.name=npz", "--out", tmp_path / "new"
    )
    assert (code, told) == (2, "")
    assert "name the hospital's images" in errors


@pytest.mark.parametrize(("model", "networks"), [(NETWORK, 2), (LINEAR, 1)])
def test_mix_is_predicted_and_exported_as_one_model(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Any, networks: int
) -> None:
    run, out = tmp_path / "run", tmp_path / "ours"
    tiny_federation(model=model, sites=2, rounds=1, threads=1).run(run)
    trained = []

    def mixed(recipe: FineTuning, net: nn.Module, *_: object, **given: Any) -> FineTuned:
        trained.append(given["alone"](site_images(), None))
        return FineTuned(
            net=mix(trained[0], net, recipe.share).eval(),
            candidates=(
                Candidate(kind="start", score=0.5, loss=2.0, difference=1.0),
                Candidate(kind="ensemble", epochs=6, score=0.5, loss=0.5, difference=-0.5),
                Candidate(kind="alone", score=0.5, loss=1.0),
            ),
            chosen=1,
            metric="accuracy",
            images=40,
            folds=2,
        )

    with monkeypatch.context() as patched:
        patched.setattr(FineTuning, "fine_tune", mixed)
        code, told, errors = spoken(
            "adapt", run, "--out", out, *from_file(images, CLASSES), "--share", "0.75"
        )
    assert code == 0, errors
    assert re.search(r"^chosen +alone, mixed with 6 epochs", told, re.MULTILINE)
    record = json.loads((out / "personal.json").read_text("utf-8"))
    assert (record["networks"], record["share"]) == (networks, 0.75)
    before, found = Classifier.open(run), Classifier.open(out)
    inputs = before.model.preprocess(torch.from_numpy(site_images().images) / 255)
    logits = 0.25 * trained[0](inputs) + 0.75 * before.net(inputs)
    expected = found.predict(site_images().images)
    np.testing.assert_allclose(expected, logits.softmax(1).detach().numpy(), atol=1e-5)
    code, told, errors = spoken("export", out)
    assert code == 0, errors
    card = " ".join((out / "export" / "README.md").read_text("utf-8").split())
    assert "the weighted mean of two networks" in card
    assert "| alone, mixed with 6 epochs | 50.00% | 0.5000 | chosen |" in card
    program = torch.export.load(out / "export" / "model.pt2").module()
    given = program(torch.from_numpy(site_images().images))
    np.testing.assert_allclose(given.detach().numpy(), expected, atol=1e-5)
    code, told, errors = spoken("adapt", out, *from_file(images, CLASSES), "--out", tmp_path / "2")
    assert (code, told) == (2, "")
    assert "is adapted already" in errors


def test_hostile_states_are_refused_in_one_sentence(
    personal_run: Result, private_run: Path, tmp_path: Path
) -> None:
    folder = personal_run.folder
    assert folder is not None
    from cohortium.storage.trainer_state import read_trainer_state

    _, _, kept = read_trainer_state(state_of(personal_run))
    (name, *_), after = kept.at_round_end, kept.at_round_end

    def written(state: dict[str, Any], label: str) -> Path:
        path = tmp_path / label
        path.write_bytes(encode_trainer_state(bytes(16), TrainerState(round=1, at_round_end=state)))
        return path

    files = [
        written({**after, name: torch.full_like(after[name], float("nan"))}, "nan"),
        written({**after, name: torch.zeros(1)}, "broadcast"),
        written({**after, name: torch.zeros(3, 3)}, "shape"),
        written({"other": torch.zeros(2)}, "names"),
        written({}, "empty"),
        tmp_path / "pickle",
        tmp_path / "plain",
        tmp_path / "missing",
    ]

    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "exploded",)

    files[5].write_bytes(pickle.dumps(Bomb()))
    save_file({"x": torch.zeros(2)}, files[6])
    for path in files:
        with pytest.raises(CohortiumError) as refused:
            Classifier.open(folder, state=path)
        assert "\n" not in str(refused.value)
        assert path.name in str(refused.value)
    assert not (tmp_path / "exploded").exists()
    with pytest.raises(RequestError, match="keeps none"):
        Classifier.open(private_run, state=state_of(personal_run))


def test_a_failed_write_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(path: Path, data: bytes) -> None:
        if path.name == "b":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("cohortium.storage.atomic_folder.atomic_write", stopped)
        with pytest.raises(KeyboardInterrupt):
            atomic_folder(tmp_path / "new", {"a": b"1", "b": b"2"})
    assert list(tmp_path.iterdir()) == []
    atomic_folder(tmp_path / "new", {"a": b"1", "in/b": b"2"})
    before = hashlib.sha256((tmp_path / "new" / "a").read_bytes()).digest()
    with pytest.raises(FileExistsError):
        atomic_folder(tmp_path / "new", {"a": b"3"})
    assert hashlib.sha256((tmp_path / "new" / "a").read_bytes()).digest() == before
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_simulated_sites_have_baselines_in_record_and_report(tmp_path: Path) -> None:
    from cohortium import reporting

    run = tiny_federation(
        dataset=QuadrantImages(96), model=NETWORK, partitioner="dirichlet", sites=2, rounds=1,
        threads=1, holdout_fraction=0.3, holdout_baselines=("alone", "adapted"),
    ).run(tmp_path / "run")  # fmt: skip
    rows = json.loads((tmp_path / "run" / "simulation" / "holdout_scores.json").read_text())
    assert run.own is not None
    worst = min(rows, key=lambda row: row["adapted_score"])
    assert (run.own.worst_site, run.own.worst_score) == (worst["site"], worst["adapted_score"])
    assert all(0 <= row["alone_score"] <= 1 for row in rows)
    page = reporting.render([reporting.read(tmp_path / "run")])
    assert 'id="held-out"' in page
    table = page[page.index('id="held-out"') :]
    first = table.index(f'<th scope="row">{worst["site"]}</th>')
    other = table.index(f'<th scope="row">{1 - worst["site"]}</th>')
    assert first < other
    with pytest.raises(CohortiumError, match="set holdout_fraction"):
        tiny_federation(holdout_baselines=("alone",))
    with pytest.raises((CohortiumError, ValueError), match="at most once"):
        tiny_federation(holdout_fraction=0.1, holdout_baselines=("alone", "alone"))
