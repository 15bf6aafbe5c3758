"""The model `backbone`: features, trained parts, and refused files."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor, nn

from cohortium import Federation
from cohortium.clipping.batch_mixing import require_no_batch_mixing
from cohortium.inference.classifier import Classifier
from cohortium.inference.export.program import as_torch, trace
from cohortium.parameters import trainable
from cohortium.plugin import DataSpec, Multiclass, NetworkError, StudyError
from cohortium_backbone import Backbone, _files, cohortium_models
from cohortium_backbone._program import read_program
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from cohortium_phantom import Phantom
from tests.support import exported_programs as programs
from tests.support.flipped_bytes import flipped
from tests.support.per_example_gradients import agree

SPEC = DataSpec(channels=3, size=(16, 16), task=Multiclass(("a", "b", "c")), examples=30)
IMAGES = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def net() -> programs.Net:
    return programs.network()


@pytest.fixture(scope="module")
def content(net: programs.Net) -> bytes:
    return programs.exported(net)


@pytest.fixture(scope="module")
def given_files(tmp_path_factory: pytest.TempPathFactory, net: programs.Net) -> dict[str, Any]:
    return programs.parameters(tmp_path_factory.mktemp("backbone"), net)


def _scaled(model: Backbone, images: Tensor) -> Tensor:
    mean, deviation = (
        torch.tensor(values).view(1, 3, 1, 1) for values in (model.mean, model.deviation)
    )
    return (images - mean) / deviation


def _unit(rows: Tensor) -> Tensor:
    found: Tensor = rows / rows.norm(dim=1, keepdim=True)
    return found


def test_output_features_match_original_network(
    given_files: dict[str, Any], net: programs.Net
) -> None:
    model = Backbone(**given_files)
    with torch.no_grad():
        wanted = 70 * _unit(net(_scaled(model, IMAGES)))
    assert torch.allclose(model.preprocess(IMAGES), wanted, atol=1e-4)


def test_taps_match_hooks_of_original_network(
    given_files: dict[str, Any], net: programs.Net
) -> None:
    taps = ("stem.0", "block", "norm")
    model = Backbone(**given_files, taps=taps)
    seen: list[Tensor] = []
    hooks = [
        net.get_submodule(name).register_forward_hook(
            lambda _, __, output: seen.append(output.detach().clone())
        )
        for name in taps
    ]
    with torch.no_grad():
        net(_scaled(model, IMAGES))
    for hook in hooks:
        hook.remove()
    blocks = [each.mean((2, 3)) if each.ndim == 4 else each for each in seen]
    wanted = torch.cat([70 / 3**0.5 * _unit(block) for block in blocks], dim=1)
    assert torch.allclose(model.preprocess(IMAGES), wanted, atol=1e-4)


def test_resized_grey_images_have_features(given_files: dict[str, Any]) -> None:
    model = Backbone(**given_files)
    grey = torch.rand(2, 1, 28, 20)
    rows = model.preprocess(grey)
    assert rows.shape == (2, 6)
    assert torch.allclose(rows, model.preprocess(grey.expand(-1, 3, -1, -1)), atol=1e-4)
    assert model.preprocess(grey[:0]).shape == (0, 6)


@pytest.mark.parametrize(
    ("learn", "named"),
    [
        (
            "norms",
            {"stem/1/weight", "stem/1/bias", "block/norm/weight", "block/norm/bias", "norm/weight",
             "norm/bias"},
        ),
        ("lora", {f"{layer}.{part}.weight" for layer in ("conv2d", "conv2d_1", "linear")
                  for part in ("down", "up")}),
    ],
)  # fmt: skip
def test_learn_setting_selects_parameters(
    given_files: dict[str, Any], learn: Any, named: set[str]
) -> None:
    model = Backbone(**given_files, learn=learn, rank=2)
    built = model.build(SPEC, 1)
    trained = {n for n, p in built.named_parameters() if p.requires_grad}
    prefix = {"norms": "body.weights.", "lora": "body.adapters."}[learn]
    assert trained == {prefix + name for name in named} | {"head.weight", "head.bias"}
    assert not list(built.buffers())
    # Before training the features are those of the frozen network.
    features = Backbone(**given_files).preprocess(IMAGES)
    with torch.no_grad():
        found = built.get_submodule("body")(model.preprocess(IMAGES))
    assert torch.allclose(found, features, atol=1e-4)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("learn", ["norms", "lora"])
@pytest.mark.parametrize("clip", [1e-2, 1e6])
def test_clipped_sum_matches_definition(
    given_files: dict[str, Any], learn: Any, clip: float
) -> None:
    net = Backbone(**given_files, learn=learn, rank=2).build(SPEC, 1).train()
    with torch.no_grad():
        for parameter in trainable(net):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
            parameter.add_(noise, alpha=0.2)
    agree(net.double(), IMAGES.double(), clip=clip)


@pytest.mark.parametrize("learn", ["norms", "lora"])
def test_batch_norm_stays_fixed_in_training(
    given_files: dict[str, Any], net: programs.Net, learn: Any
) -> None:
    model = Backbone(**given_files, learn=learn)
    built = model.build(SPEC, 1)
    nn.init.ones_(built.head.weight)  # type: ignore[arg-type, union-attr]
    require_no_batch_mixing(built)
    before = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    with torch.no_grad():
        evaluated = built.eval()(IMAGES)
        trained = built.train()(IMAGES)
        alone = torch.cat([built(image[None]) for image in IMAGES])
    assert torch.equal(evaluated, trained)
    assert torch.allclose(trained, alone, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(before[name], now) for name, now in built.state_dict().items())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("learn", ["head", "norms", "lora"])
def test_backbone_trains_under_privacy_and_is_exported(
    given_files: dict[str, Any], tmp_path: Path, learn: Any
) -> None:
    study = Federation(
        dataset=Phantom(examples=60, validation=0, test=12),
        model=Backbone(**given_files, learn=learn, taps=("block", "norm")),
        trainer=FedSGD(sampling_rate=1.0),
        privatizer=Gaussian(epsilon=1e3),
        aggregator="plain",
        sites=2,
        rounds=2,
        evaluate_every=0,
    )
    result = study.run(tmp_path / "run")
    assert result.guarantee is not None
    moved = [name for name, tensor in result.weights.items() if "head.weight" in name or
             ("adapters" in name and ".up." in name)]  # fmt: skip
    assert all(float(result.weights[name].abs().max()) > 0 for name in moved)
    if learn == "norms":  # as "lora", and the export takes seconds
        return
    classifier = Classifier.open(tmp_path / "run")
    assert as_torch(trace(classifier), classifier)  # which compares their probabilities


def test_private_whitening_learns_moments_of_features(given_files: dict[str, Any]) -> None:
    cells = Phantom(examples=60, validation=0, test=12)
    study = Federation(
        dataset=cells,
        model=Backbone(
            **given_files, taps=("stem", "block"), center_on=evolve(cells, seed=9), whiten=0.5,
            components=5, private_whitening=True,
        ),
        trainer=FedSGD(sampling_rate=1.0, statistics_rounds=1),
        privatizer="none",
        aggregator="plain",
        sites=2,
        rounds=2,
        evaluate_every=0,
    )  # fmt: skip
    weights = study.run().weights
    rows = study.model.preprocess(torch.from_numpy(cells.load().train.images).float() / 255)
    wanted = rows.T @ rows
    found = weights["moments.weight"]
    assert found.shape == (5, 5)
    assert torch.allclose(found / found.trace(), wanted / wanted.trace(), atol=1e-4)


def _without(name: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors[name]

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_without("block.conv.weight"), "has no tensor 'block.conv.weight', which the"),
        (
            lambda t: t.update({"out.bias": torch.zeros(5)}),
            r"'out.bias' of shape \[5\], and the architecture needs \[6\]",
        ),
        (lambda t: t.update({"new": torch.zeros(5)}), "has a tensor 'new' that the architecture"),
        (
            lambda t: t.update({"out.bias": torch.zeros(6, dtype=torch.int64)}),
            "'out.bias' of type int64, and the architecture needs float32",
        ),
        (
            lambda t: t.update({"out.bias": torch.full((6,), torch.nan)}),
            "value in 'out.bias' that is not finite",
        ),
    ],
    ids=["missing", "shape", "unknown", "type", "finite"],
)
def test_wrong_weights_are_refused(
    given_files: dict[str, Any], tmp_path: Path, net: programs.Net, change: Any, sentence: str
) -> None:
    tensors = {name: tensor.clone() for name, tensor in programs.weights_of(net).items()}
    change(tensors)
    file = tmp_path / "w.safetensors"
    own = {"weights": str(file), "weights_sha256": programs.pinned(file, save(tensors))}
    with pytest.raises(StudyError, match=sentence):
        Backbone(**{**given_files, **own}).preprocess(IMAGES)


def test_half_precision_weights_become_single(
    given_files: dict[str, Any], tmp_path: Path, net: programs.Net
) -> None:
    half = {n: t.half() if t.is_floating_point() else t
            for n, t in programs.weights_of(net).items()}  # fmt: skip
    file = tmp_path / "w.safetensors"
    own = {"weights": str(file), "weights_sha256": programs.pinned(file, save(half))}
    rows = Backbone(**{**given_files, **own}).preprocess(IMAGES)
    assert rows.dtype == torch.float32
    assert torch.allclose(rows, Backbone(**given_files).preprocess(IMAGES), atol=0.5)


@pytest.mark.parametrize("key", ["program", "weights"])
def test_file_faults_are_named(given_files: dict[str, Any], tmp_path: Path, key: str) -> None:
    def refused(**changes: Any) -> str:
        with pytest.raises(StudyError) as found:
            Backbone(**{**given_files, **changes}).preprocess(IMAGES)
        assert str(found.value).endswith(".")
        return str(found.value)

    digest = given_files[f"{key}_sha256"]
    assert f"model.{key} = '{tmp_path}/none' cannot be read (No such file" in refused(
        **{key: f"{tmp_path}/none"}
    )
    assert f"has the SHA-256 {digest}, and model.{key}_sha256 is {'0' * 64};" in refused(
        **{f"{key}_sha256": "0" * 64}
    )
    assert f"needs model.{key}_sha256; the file here has {digest}" in refused(
        **{f"{key}_sha256": ""}
    )
    damaged = tmp_path / "damaged"
    sha256 = programs.pinned(damaged, b"PK\3\4no file at all")
    assert "; " in refused(**{key: str(damaged), f"{key}_sha256": sha256})
    assert f"needs model.{'architecture' if key == 'program' else key}" in refused(**{key: ""})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"taps": ("blick",)}, "names 'blick', and the backbone has no .*did you mean block"),
        ({"size": 32}, "takes images of 16×16 pixels, and model.size is 32"),
        ({"mean": (0.5, 0.5), "deviation": (1.0, 1.0)}, "2 numbers, and the backbone takes 3"),
    ],
)
def test_wrong_settings_are_refused(
    given_files: dict[str, Any], changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(StudyError, match=sentence):
        Backbone(**{**given_files, **changes}).preprocess(IMAGES)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"program": "x", "architecture": "y"}, "exclude each other"),
        ({"components": 3}, "need center_on"),
        ({"learn": "lora", "private_whitening": True}, "features that stay fixed"),
        ({"mean": (0.5, 0.5)}, "2 numbers and deviation 3"),
        ({"architecture": "hf-hub:x/y"}, "architecture"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Backbone(**changes)


def test_files_are_local_parameters() -> None:
    """A hospital allows each by name."""
    (offer,) = cohortium_models()
    assert offer.local_parameters == ("program", "weights")


def test_volumes_are_refused(given_files: dict[str, Any]) -> None:
    with pytest.raises(StudyError, match="takes images of 2 axes, and these have 3"):
        Backbone(**given_files).preprocess(torch.zeros(1, 3, 16, 16, 16))


def test_learn_without_such_layers_is_refused(tmp_path: Path) -> None:
    class Bare(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3))

    given = programs.parameters(tmp_path, Bare().eval())
    for learn, what in (("norms", "normalisation layer"), ("lora", "linear layer or convolution")):
        with pytest.raises(StudyError, match=f"has no {what}"):
            Backbone(**given, learn=learn).build(SPEC, 0)  # type: ignore[arg-type]


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        return torch.dropout(self.norm(images), 0.5, train=True).mean((2, 3))


def test_programs_in_training_mode_are_refused() -> None:
    with pytest.raises(StudyError, match=r"training mode|own buffers"):
        read_program(programs.exported(Mixing().train()), "it")
    with pytest.raises(StudyError, match="calls 'dropout' in training mode"):
        read_program(programs.exported(Mixing().eval()), "it")
    with pytest.raises(StudyError, match="takes 2 images at a time"):
        read_program(programs.exported(programs.network(), has_batch=False), "it")


def _node(listed: dict[str, Any]) -> dict[str, Any]:
    """The first convolution."""
    nodes: list[dict[str, Any]] = listed["graph_module"]["graph"]["nodes"]
    return next(node for node in nodes if node["target"] == "torch.ops.aten.conv2d.default")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda p: _node(p).update(target="torch.ops.aten.from_file.default"),
            "'torch.ops.aten.from_file.default', which is not allowed",
        ),
        (lambda p: _node(p).update(target="os.system"), "'os.system', which is not allowed"),
        (lambda p: _node(p).update(target="torch.ops.aten.randn.default"), "not allowed"),
        (lambda p: _node(p).update(target="torch.ops.aten.add.out"), "not allowed"),
        (
            lambda p: _node(p)["inputs"][0]["arg"]["as_tensor"].update(name="linear"),
            "uses a value 'linear' before it has one",
        ),
        (
            lambda p: _node(p)["outputs"][0]["as_tensor"].update(name="a\x1b[2J"),
            r"a name 'a\\x1b\[2J' that cannot be shown",
        ),
        (lambda p: _node(p)["inputs"][0].update(name="weight"), "an argument twice"),
        (lambda p: _node(p)["inputs"][0].update(name="file"), "an argument that it has not"),
        (lambda p: _node(p)["outputs"][0]["as_tensor"].update(name="images"), "one name to two"),
        (lambda p: p["schema_version"].update(major=9), "has version 9 of torch's schema"),
        (lambda p: p.pop("graph_module"), "no program of torch.export"),
        (lambda p: _node(p).update(inputs=3), "no program of torch.export"),
    ],
)
def test_altered_programs_are_refused(content: bytes, change: Any, sentence: str) -> None:
    with pytest.raises(StudyError, match=sentence):
        read_program(programs.altered(content, change), "it")


def test_parts_that_torch_would_run_are_not_read(content: bytes, net: programs.Net) -> None:
    """Text that `torch.export.load` evaluates, and a pickle, are in places that nothing reads."""
    text = "__import__('os').abort()"

    def change(listed: dict[str, Any]) -> None:
        listed["guards_code"] = [text]
        listed["range_constraints"] = {text: {"min_val": 0, "max_val": 1}}
        graph = listed["graph_module"]["graph"]
        size = graph["tensor_values"]["images"]["sizes"][0]
        size["as_expr"]["expr_str"] = text

    program = read_program(programs.altered(content, change), "it")
    assert len(program.steps) == len(read_program(content, "it").steps)


def test_wrong_bytes_of_a_packed_program_end_in_a_sentence() -> None:
    """torch packs nothing, and another writer may deflate the list."""
    file = io.BytesIO()
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/models/model.json", json.dumps(rng.integers(0, 99, 200).tolist()))
    for content in flipped(file.getvalue()):
        with pytest.raises(StudyError, match=r"net\.pt2"):
            read_program(content, "net.pt2")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_mutated_programs_end_in_a_sentence(content: bytes, data: st.DataObject) -> None:
    """Any change of the list of operations is refused, or gives a program of known operations."""

    def change(listed: dict[str, Any]) -> None:
        place: Any = listed
        for _ in range(12):
            keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
            key = data.draw(st.sampled_from(keys))
            if not isinstance(place[key], dict | list) or not place[key]:
                break
            if data.draw(st.integers(0, 5)) == 0:
                break
            place = place[key]
        place[key] = data.draw(
            st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3)
            | st.sampled_from([copy.deepcopy(place[key]), [], {}])
        )  # fmt: skip

    try:
        program = read_program(programs.altered(content, change), "it")
    except StudyError as error:
        sentence = str(error)
    else:
        sentence = f"it has {len(program.steps)} known operations."
    assert sentence.startswith("it ")
    assert sentence.endswith(".")


def test_weights_that_a_program_changes_are_refused(
    given_files: dict[str, Any], tmp_path: Path, content: bytes
) -> None:
    def change(listed: dict[str, Any]) -> None:
        node = json.loads(json.dumps(_node(listed)))
        node["target"] = "torch.ops.aten.add_.Tensor"
        scale = {"as_tensor": {"name": "p_out_bias"}}
        node["inputs"] = [
            {"name": "self", "arg": scale, "kind": 1}, {"name": "other", "arg": scale, "kind": 1},
        ]  # fmt: skip
        node["outputs"] = [{"as_tensor": {"name": "sneaky"}}]
        listed["graph_module"]["graph"]["nodes"].insert(0, node)

    file = tmp_path / "net.pt2"
    sha256 = programs.pinned(file, programs.altered(content, change))
    with pytest.raises(NetworkError, match="changes its own weights as it runs"):
        Backbone(**{**given_files, "program": str(file), "program_sha256": sha256}).preprocess(
            IMAGES
        )


def test_too_large_results_are_refused(
    given_files: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cohortium_backbone._network.MAX_NUMBERS", 100)
    with pytest.raises(StudyError, match=r"more than 100; lower model\.size"):
        Backbone(**given_files).preprocess(IMAGES)


def _timm(net: programs.Net) -> types.ModuleType:
    """A stand-in for timm with one architecture, whose classifier is `out`."""
    made = types.ModuleType("timm")

    def create_model(name: str, *, pretrained: bool, num_classes: int, **size: int) -> nn.Module:
        assert (name, pretrained, num_classes, size) == ("tiny_net", False, 0, {"img_size": 16})
        drawn = programs.Net()
        drawn.out = nn.Identity()  # type: ignore[assignment]
        drawn.default_cfg = {"classifier": "out"}  # type: ignore[assignment]
        return drawn

    vars(made).update(
        create_model=create_model,
        is_model="tiny_net".__eq__,
        list_models=lambda: ["tiny_net"],
        get_pretrained_cfg=lambda _: types.SimpleNamespace(fixed_input_size=True),
    )
    return made


def test_architecture_matches_its_network(
    given_files: dict[str, Any], net: programs.Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", _timm(net))
    file = tmp_path / "w.safetensors"
    sha256 = programs.pinned(file, save(net.state_dict()))  # without the constant, with the head
    model = Backbone(architecture="tiny_net", size=16, weights=str(file), weights_sha256=sha256)
    state = torch.get_rng_state()
    rows = model.preprocess(IMAGES)
    assert torch.equal(state, torch.get_rng_state())
    same = Backbone(**given_files, taps=("norm",)).preprocess(IMAGES)
    assert torch.allclose(rows, same, atol=1e-4)
    assert model.build(SPEC, 0)(rows).shape == (6, 3)
    with torch.device("meta"):
        assert evolve(model, learn="lora").build(SPEC, 0).body is not None


def test_unknown_architecture_is_refused(
    net: programs.Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", _timm(net))
    with pytest.raises(StudyError, match=r"no architecture 'tiny_met'.*did you mean tiny_net"):
        Backbone(architecture="tiny_met", size=16).build(SPEC, 0)


def test_absent_timm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(NetworkError, match=r"needs timm, which cannot be .*install cohortium\[tim"):
        Backbone(architecture="resnet18").build(SPEC, 0)


def test_features_are_per_image_in_any_parts(
    given_files: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Backbone(**given_files).preprocess(IMAGES)
    monkeypatch.setattr("cohortium_backbone._network.NUMBERS_AT_ONCE", 1)
    single = Backbone(**given_files).preprocess(IMAGES)
    assert np.allclose(whole, single, atol=1e-4)


def test_pinned_file_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    class Counting(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            sizes.append(-1 if size is None else size)
            return super().read(size)

    content = b"weights" * 9
    monkeypatch.setattr(Path, "open", lambda _path, _mode: Counting(content))
    digest = hashlib.sha256(content).hexdigest()
    assert _files.read_pinned(str(tmp_path / "net"), digest, key="weights") == content
    assert {*sizes} == {_files.BLOCK_BYTES}
    monkeypatch.setattr(_files, "MAX_FILE_BYTES", 9)
    with pytest.raises(StudyError, match="has more than 9 bytes"):
        _files.read_pinned(str(tmp_path / "net"), digest, key="weights")
