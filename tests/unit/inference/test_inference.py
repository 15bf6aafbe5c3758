"""The trained model in use: what it predicts, what is refused, and what an export holds."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from attrs import evolve
from markdown_it import MarkdownIt
from PIL import Image
from typer.testing import CliRunner

from cohortium.cli import app
from cohortium.data.examples import DataSpec
from cohortium.data.picture import ORIENTATION
from cohortium.errors import CohortiumError, DataError, RecordError, RequestError
from cohortium.inference import export, image_files
from cohortium.inference.classifier import Classifier
from cohortium.inference.encrypted.public_model import publish
from cohortium.inference.export import card
from cohortium.plugin import Multiclass
from cohortium.runs.result import Result
from cohortium.storage import csv_rows
from cohortium_fedavg import FedAvg
from cohortium_module import Module
from cohortium_npz import Npz
from tests.support.federations import QuadrantImages, tiny_federation


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("runs") / "one"
    # At this rate the validation accuracy goes down as well as up.
    return tiny_federation(
        rounds=6,
        trainer=FedAvg(learning_rate=0.4),
        model=Module(module="tests.support.federations:SmallConvNet"),
    ).run(folder)


@pytest.fixture
def folder(run: Result, tmp_path: Path) -> Path:
    assert run.folder is not None
    return Path(shutil.copytree(run.folder, tmp_path / "run"))


def test_classifier_reproduces_result_scores(run: Result) -> None:
    assert run.folder is not None
    classifier = Classifier.open(run.folder)
    test = QuadrantImages().load().test
    assert test is not None
    assert run.scores is not None
    exact = classifier.spec.task.score(classifier.predict(test.images), test.labels)
    assert exact == evolve(run.scores, groups=())
    assert (classifier.rounds, classifier.chosen) == (6, None)
    assert classifier.sha256 == run.weights_sha256


def test_best_round_is_first_with_best_validation(run: Result) -> None:
    assert run.folder is not None
    accuracies = [event.scores.main for event in run.history if event.scores is not None]
    best = Classifier.open(run.folder, "best")
    assert best.rounds == 1 + int(np.argmax(accuracies))
    assert best.chosen == max(accuracies)
    validation = QuadrantImages().load().validation
    assert validation is not None
    called = best.predict(validation.images).argmax(1)
    assert (called == validation.labels).mean() == best.chosen


def test_without_scored_rounds_there_is_no_best(tmp_path: Path) -> None:
    tiny_federation(
        rounds=1, evaluate_every=0, model=Module(module="tests.support.federations:SmallConvNet")
    ).run(tmp_path / "run")
    with pytest.raises(RequestError, match="keeps no best round"):
        Classifier.open(tmp_path / "run", "best")


def _remove(name: str) -> object:
    return lambda folder: (folder / name).unlink()


def _change(name: str, old: bytes, new: bytes) -> object:
    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        assert old in data
        (folder / name).write_bytes(data.replace(old, new))

    return change


def _cut(folder: Path) -> None:
    path = folder / "weights" / "last.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def _publish(folder: Path) -> None:
    publish(Classifier.open(folder), folder / "public")
    for name in ("model.toml", "dataset.json"):
        shutil.copy(folder / "public" / name, folder)
    (folder / "study.toml").unlink()


def _swap(folder: Path) -> None:
    shutil.copy(folder / "weights/best.safetensors", folder / "weights/last.safetensors")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_remove("study.toml"), "holds no run: there is no study.toml"),
        (_publish, "use it with `cohortium predict` and the --encrypted or --parties"),
        (_remove("weights/last.safetensors"), "no round is complete yet"),
        (_remove("dataset.json"), "the run has not started a round yet"),
        (_cut, "is no whole safetensors file"),
        (
            _change(
                "study.toml",
                b"tests.support.federations:SmallConvNet",
                b"tests.support.federations:SmallConvNat",
            ),
            "has no 'SmallConvNat'; did you mean SmallConvNet",
        ),
        (_change("study.toml", b'"module"', b'"cnn"'), "has no such parameter"),
        (_change("dataset.json", b'"d"', b'"d", "e"'), "not of the model"),
        (_change("dataset.json", b"1,", b'"one",'), "copy the file anew"),
        (_change("result.json", b"{", b"["), "result.json is damaged"),
        (_swap, "are not those of result.json"),
    ],
)
def test_inconsistent_run_record_is_refused(folder: Path, spoil: object, words: str) -> None:
    spoil(folder)  # type: ignore[operator]
    with pytest.raises(CohortiumError, match=re.escape(words)) as caught:
        Classifier.open(folder)
    assert "\n" not in str(caught.value)


def test_images_of_another_kind_are_refused(run: Result) -> None:
    assert run.folder is not None
    classifier = Classifier.open(run.folder)
    for images in (np.zeros((2, 1, 8, 8)), np.zeros((2, 3, 8, 8), np.uint8)):
        with pytest.raises(DataError, match="takes uint8 images of shape"):
            classifier.predict(images)


def test_class_names_in_predictions_csv_are_no_formulas(tmp_path: Path) -> None:
    classes = ("=1+1", "+a", "-b", "@c")
    images, labels = _noise(40, 8, 8), np.arange(40) % 4
    np.savez(
        tmp_path / "own.npz",
        train_images=images, train_labels=labels, test_images=images, test_labels=labels,
    )  # fmt: skip
    tiny_federation(dataset=Npz(path=str(tmp_path / "own.npz"), classes=classes)).run(
        tmp_path / "run"
    )
    command = ["predict", str(tmp_path / "run"), str(tmp_path / "own.npz"), "--split", "test"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0
    cells = [cell for row in csv.reader(io.StringIO(done.stdout)) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
    head, first, *_ = csv_rows.read(done.stdout)
    assert head[2:] == list(classes)
    assert first[1] in classes


def test_predictions_are_exact_and_readable_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_federation(sites=2, rounds=1).run(tmp_path / "run")
    np.savez(tmp_path / "new.npz", images=_noise(3, 8, 8))
    rows = [[1.0, 0.0], [0.99999994, 5.9604645e-08], [0.75, 0.25]]
    found = np.array(rows, np.float32)
    found = np.pad(found, ((0, 0), (0, len(Classifier.open(tmp_path / "run").spec.task.names) - 2)))
    monkeypatch.setattr(Classifier, "predict", lambda *_: found)
    command = ["predict", str(tmp_path / "run"), str(tmp_path / "new.npz")]
    (_, *lines) = csv_rows.read(CliRunner().invoke(app, command).stdout)
    assert np.array_equal(np.array([line[2:] for line in lines], np.float32), found)
    out = tmp_path / "called.csv"
    assert CliRunner().invoke(app, [*command, "--out", str(out)]).exit_code == 0
    assert csv_rows.read(out.read_text())[1:] == lines
    told = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert [list(row["probabilities"].values()) for row in told] == found.tolist()

    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True)
    (_, *shown) = csv_rows.read(CliRunner().invoke(app, command).stdout)
    assert [line[2:4] for line in shown] == [
        [">0.9999", "<0.0001"], [">0.9999", "<0.0001"], ["0.7500", "0.2500"]
    ]  # fmt: skip
    assert CliRunner().invoke(app, [*command, "--out", str(tmp_path / "b.csv")]).exit_code == 0
    assert (tmp_path / "b.csv").read_text() == out.read_text()
    assert json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout) == told


GREY = DataSpec(channels=1, size=(6, 4), task=Multiclass(("a", "b")), examples=1)
COLOUR = DataSpec(channels=3, size=(6, 4), task=Multiclass(("a", "b")), examples=1)


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_image_files_are_read_unchanged_and_sorted(tmp_path: Path) -> None:
    grey, colour = _noise(3, 6, 4), _noise(3, 6, 4, 3)
    for spec, images in ((GREY, grey), (COLOUR, colour)):
        place = tmp_path / str(spec.channels)
        place.mkdir()
        (place / "notes.txt").touch()
        for name, image in zip(("c.png", "a.PNG", "b.png"), images, strict=True):
            Image.fromarray(image).save(place / name)
        np.savez(place / "own.npz", images=images)
        np.savez(place / "split.npz", val_images=images, test_images=images[:1])
        wanted = images.reshape(3, 6, 4, -1).transpose(0, 3, 1, 2)
        (batch,) = image_files.read([place], spec, split="test")
        names, found = batch.names, batch.images
        assert [Path(name).name for name in names] == ["a.PNG", "b.png", "c.png"]
        assert np.array_equal(found, wanted[[1, 2, 0]])
        batches = list(
            image_files.read(
                [place / "c.png", place / "own.npz", place / "split.npz"], spec, split="val"
            )
        )
        assert [len(batch.images) for batch in batches] == [1, 3, 3]
        assert batches[1].names == ["own.npz#0", "own.npz#1", "own.npz#2"]
        assert all(np.array_equal(batch.images, wanted[: len(batch.images)]) for batch in batches)


def _spoiled(tmp_path: Path) -> dict[str, Path]:
    """Files that cannot be taken for colour images of 6 by 4 pixels."""
    colour = Image.fromarray(_noise(6, 4, 3))
    places = {name: tmp_path / f"{name}.png" for name in ("grey", "alpha", "large", "text", "cut")}
    Image.fromarray(_noise(6, 4)).save(places["grey"])
    colour.convert("RGBA").save(places["alpha"])
    Image.fromarray(_noise(12, 8, 3)).save(places["large"])
    places["text"].write_text("no picture")
    colour.save(places["cut"])
    places["cut"].write_bytes(places["cut"].read_bytes()[:60])
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    colour.save(tmp_path / "turned.jpg", exif=exif)
    colour.save(tmp_path / "other.png", format="GIF")
    (tmp_path / "empty").mkdir()
    (tmp_path / "classes" / "benign").mkdir(parents=True)
    np.savez(tmp_path / "none.npz", images=np.zeros((0, 6, 4, 3), np.uint8))
    np.savez(tmp_path / "float.npz", images=np.zeros((1, 6, 4, 3)))
    np.savez(tmp_path / "wrong.npz", train_images=_noise(1, 6, 4, 3))
    names = ("turned.jpg", "other.png", "empty", "none.npz", "float.npz", "wrong.npz", "gone.png")
    return places | {name: tmp_path / name for name in (*names, "classes", "slide.tiff")}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("grey", "has 1 channel of 6 × 4 pixels, and the model takes 3 channels of 6 × 4"),
        ("alpha", "4 channels"),
        ("large", "has 3 channels of 12 × 8 pixels"),
        ("text", "no PNG or JPEG file, despite its name"),
        ("cut", "cannot read"),
        ("turned.jpg", "asks its viewer to turn it"),
        ("other.png", "no PNG or JPEG file"),
        ("empty", "holds no PNG or JPEG file; give another one"),
        ("classes", "holds no PNG or JPEG file; give the folders in it"),
        ("none.npz", "holds no images"),
        ("float.npz", "is float64"),
        ("wrong.npz", "holds neither an array 'images' nor 'test_images'"),
        ("gone.png", "cannot read"),
        ("slide.tiff", "is no image that can be read here"),
    ],
)
def test_image_of_wrong_format_is_refused(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        list(image_files.read([_spoiled(tmp_path)[name]], COLOUR, split="test"))
    assert "\n" not in str(caught.value)


WITHOUT = """
import sys
sys.modules["cohortium"] = None  # whoever imports it fails
import numpy, torch
classify = torch.export.load(sys.argv[1]).module()
images = torch.from_numpy(numpy.load(sys.argv[2]))
numpy.save(sys.argv[3], classify(images).detach().numpy())
"""


def _program_says(model: Path, images: np.ndarray, aside: Path) -> np.ndarray:
    np.save(aside / "images.npy", images)
    names = [str(model), str(aside / "images.npy"), str(aside / "called.npy")]
    subprocess.run([sys.executable, "-c", WITHOUT, *names], check=True, cwd=aside)
    called: np.ndarray = np.load(aside / "called.npy")
    return called


@pytest.mark.slow
def test_an_export_needs_torch_alone(run: Result, tmp_path: Path) -> None:
    assert run.folder is not None
    classifier = Classifier.open(run.folder)
    paths = export.export(classifier, tmp_path / "model")
    assert [path.name for path in paths] == ["weights.safetensors", "model.pt2", "README.md"]
    test = QuadrantImages().load().test
    assert test is not None
    called = _program_says(paths[1], test.images, tmp_path)
    assert np.allclose(called, classifier.predict(test.images), atol=1e-6)
    with pytest.raises(RequestError, match="is not empty"):
        export.export(classifier, tmp_path / "model")
    with pytest.raises(RequestError, match="cannot write to"):
        export.export(classifier, paths[0] / "model")


def test_model_card_matches_result(run: Result, tmp_path: Path) -> None:
    assert run.folder is not None
    paths = export.export(Classifier.open(run.folder, "best"), tmp_path / "model")
    text = paths[-1].read_text("utf-8")
    assert "**None.** These weights may give training images away" in text
    assert "**A choice was made:**" in text
    assert "40 validation images" in text
    assert f"accuracy {run.accuracy:.2%}" in text
    assert "computed again from the run's predictions for each test image" in text
    for path in paths[:-1]:
        assert hashlib.sha256(path.read_bytes()).hexdigest() in text
    for name, version in run.versions.items():
        assert f"{name} {version}" in text


@pytest.mark.parametrize(
    "place", [("metrics", "balanced_accuracy"), ("per_class", 1, "metrics", "sensitivity")]
)
def test_scores_differing_from_predictions_are_refused(
    folder: Path, place: tuple[Any, ...]
) -> None:
    path = folder / "result.json"
    result = json.loads(path.read_text())
    inner = result["scores"]
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = 0.999
    path.write_text(json.dumps(result))
    with pytest.raises(DataError, match="are not those of the predictions"):
        export.export(Classifier.open(folder), folder / "export")
    assert not (folder / "export").exists()


def test_card_without_predictions_marks_scores_unverified(folder: Path) -> None:
    shutil.rmtree(folder / "simulation")
    text = export.export(Classifier.open(folder), folder / "export")[-1].read_text("utf-8")
    assert "nothing in its folder can prove them" in text


def test_a_card_states_the_whole_guarantee(folder: Path) -> None:
    path = folder / "result.json"
    result = json.loads(path.read_text())
    result["guarantee"] = {
        "epsilon": 6.0, "delta": 1.9e-4, "epsilon_at_1e_5": 7.2, "unit": "patient",
        "adjacency": "zero-out", "against": "coordinator", "colluding": 3, "honest": 5,
        "accountant": "prv", "bounds": {}, "noise_multiplier": 1.25,
        "assumptions": ["a | b <script>"], "simulation": True,
    }  # fmt: skip
    path.write_text(json.dumps(result))
    text = card.model_card(Classifier.open(folder), card.Exported({"model.pt2": "00"}, 1))
    assert "**None: a simulation.**" in text
    assert (
        "ε = 6 at δ = 0.00019 (7.2 at 1e-5) for one patient (zero-out) against the coordin" in text
    )
    assert "| colluding sites, at most | 3 |" in text
    assert "| honest sites, at least | 5 |" in text
    assert "- a \\| b &lt;script>" in text
    assert "1 image at a time" in text
    result["guarantee"] |= {"against": "everyone", "colluding": 0, "honest": 1}
    path.write_text(json.dumps(result))
    text = card.model_card(Classifier.open(folder), card.Exported({}, None))
    assert "| other sites that may collude | all |" in text
    result["guarantee"]["unit"] = "nobody"
    path.write_text(json.dumps(result))
    with pytest.raises(RecordError, match=r"result\.json is damaged: Invalid enum value 'nobody'"):
        Classifier.open(folder)


def test_a_card_counts_no_images_that_sites_held_out(tmp_path: Path) -> None:
    federation = tiny_federation(rounds=1, holdout_fraction=0.25)
    trained = len(np.concatenate(federation.prepare().partition))
    federation.run(tmp_path / "run")
    text = card.model_card(Classifier.open(tmp_path / "run"), card.Exported({}, None))
    assert trained < 240
    assert f"squares: {trained} training images (as declared)" in text


HOSTILE = "a|b `c` *d* [e](f) <g> &lt; _h_\n# i"


def _rendered(text: str) -> tuple[list[str], list[str]]:
    """The text of a page's elements as a reader of Markdown sees it, and its headings."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    texts, headings = [], []
    for before, token in itertools.pairwise(tokens):
        if token.type == "inline":
            shown = "".join(
                " " if each.type == "softbreak" else each.content for each in token.children or ()
            )
            texts.append(shown)
            if before.type == "heading_open":
                headings.append(shown)
    return texts, headings


def test_names_in_a_card_are_shown_as_they_are(folder: Path) -> None:
    known = _rendered(_card(folder))[1]
    shown = HOSTILE.replace("\n", " ")
    facts = json.loads((folder / "dataset.json").read_text())
    facts |= {"name": HOSTILE, "source": HOSTILE}
    (folder / "dataset.json").write_text(json.dumps(facts))
    result = json.loads((folder / "result.json").read_text())
    result["versions"] = {HOSTILE: HOSTILE}
    result["guarantee"] = {
        "epsilon": 6.0, "delta": 1.9e-4, "epsilon_at_1e_5": 7.2, "unit": "patient",
        "adjacency": "zero-out", "against": "everyone", "accountant": HOSTILE,
        "noise_multiplier": 1.25, "assumptions": [HOSTILE],
    }  # fmt: skip
    rows = [
        {"value": HOSTILE, "images": 30, "score": 0.5, "low": 0.4, "high": 0.6},
        {"value": "", "images": 30, "score": 0.6, "low": 0.5, "high": 0.7},
    ]
    group = {"name": HOSTILE, "is_centre": False, "rows": rows, "worst": 0, "is_below_all": False}
    result["scores"] |= {"groups": [group]}
    result["scores"]["metrics"][HOSTILE] = 0.25
    result["scores"]["per_class"][0]["name"] = HOSTILE
    (folder / "result.json").write_text(json.dumps(result))
    study = tomllib.loads((folder / "study.toml").read_text())
    study["partitioner"] = {"name": HOSTILE}
    study["federation"]["sites"] = HOSTILE
    study["search"] = {"chosen": HOSTILE, "candidates": HOSTILE, "rounds": HOSTILE}
    (folder / "study.toml").write_text(tomli_w.dumps(study))
    texts, headings = _rendered(_card(folder))
    assert headings == [f"Model card: {shown}", *known[1:]]
    cells = [text for text in texts if text == shown]
    assert len(cells) == 5  # the accountant, the assumption, the class, the group and its value
    for sentence in (
        f"Source: {shown}.", f"partitioner {shown} split", f"aggregator plain, {shown} sites",
        f"Versions: {shown} {shown}.", f"Chosen: {shown}.", f"Worst {shown}: {shown}, 50.00%",
        f"By {shown}, with", f"{shown} candidates of {shown} rounds",
        f"{shown.replace('_', ' ')} 25.00%",
    ):  # fmt: skip
        assert any(sentence in text for text in texts), sentence


@pytest.mark.parametrize(
    "change", [{"versions": 3}, {"versions": {"a": 1}}, {"scores": []}, {"scores": {"metrics": 1}}]
)
def test_card_of_a_damaged_result_is_refused(folder: Path, change: dict[str, Any]) -> None:
    path = folder / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RecordError, match=r"result\.json is damaged: "):
        _card(folder)


def _card(folder: Path) -> str:
    return card.model_card(Classifier.open(folder), card.Exported({"model.pt2": "00"}, 1))


def test_incomplete_run_refuses_predict_and_export(folder: Path) -> None:
    (folder / "result.json").unlink()
    classifier = Classifier.open(folder)
    assert classifier.result is None
    assert classifier.predict(_noise(2, 1, 8, 8)).shape == (2, 4)
    with pytest.raises(RequestError, match="the run is not complete"):
        export.export(classifier, folder / "export")
    assert not (folder / "export").exists()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["descriptor", "dpresnet", "cnn"])
def test_exported_programs_match_model_predictions(model: str, tmp_path: Path) -> None:
    import onnxruntime

    from cohortium import Federation

    centre = ["model.center_on={name='phantom',examples=16,validation=0,test=0}"]
    settings = [
        f"model.name={model}", *(centre if model == "descriptor" else ["model.width=4"]),
        "dataset.examples=200", "dataset.validation=0", "dataset.test=40", "federation.rounds=2",
        "federation.sites=4", "privatizer.name=none", "trainer.name=fedavg",
        "aggregator.name=plain", "partitioner.name=iid",
    ]  # fmt: skip
    Federation.read(None, settings).run(tmp_path / "run")
    classifier = Classifier.open(tmp_path / "run")
    export.export(classifier, tmp_path / "model", onnx=True)
    # From black to noise: a network that has hardly learned calls all noise alike.
    images = (_noise(70, 3, 28, 28) * np.linspace(0, 1, 70).reshape(-1, 1, 1, 1)).astype(np.uint8)
    wanted = classifier.predict(images)
    assert np.ptp(wanted, axis=0).max() > 0.005
    called = _program_says(tmp_path / "model" / "model.pt2", images, tmp_path)
    assert np.allclose(called, wanted, atol=1e-5)
    session = onnxruntime.InferenceSession(str(tmp_path / "model" / "model.onnx"))
    (found,) = session.run(["probabilities"], {"images": images})
    assert np.allclose(found, wanted, atol=1e-4)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == list(
        classifier.spec.classes
    )
