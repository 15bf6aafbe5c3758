"""Networks as people write them: they train, or one sentence names them and says what to do."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cohortium import parameters
from cohortium.catalog.networks import build_network, name_of
from cohortium.crypto.randomness import Randomness
from cohortium.data.examples import DataSpec
from cohortium.errors import BrokenNetworkError, NetworkError, PrivacyError, StudyError
from cohortium.inference.classifier import Classifier
from cohortium.learning.batch_sampling import shuffled_batches
from cohortium.roles.values import Workload
from cohortium_cnn import CNN
from cohortium_fedavg import FedAvg
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from cohortium_module import Module
from cohortium_phantom import PhantomFields
from tests.support.federations import QuadrantImages, tiny_federation

HEAD = "import torch\nfrom torch import nn\n"
NET = """
class Net(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, 2, 1)
        self.head = nn.Linear(4, classes)
        {more}
    def forward(self, x):
        x = self.conv(x).relu().mean((2, 3))
        {then}
        return self.head(x)
"""


def code(more: str = "pass", then: str = "pass") -> str:
    return HEAD + NET.format(more=more, then=then)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("mynets", "helpers", "random_helpers"):
            del sys.modules[name]


def module(folder: Path, source: str, name: str = "Net", **arguments: Any) -> Module:
    (folder / "mynets.py").write_text(source, "utf-8")
    return Module(module=f"mynets:{name}", folder=str(folder), arguments=arguments)


TRAINERS = [FedAvg(learning_rate=0.1, batch_size=39), FedSGD()]
PRIVATE = Gaussian(epsilon=50.0, delta=1e-3, clip_norm=1.0)

FAULTS = {
    "frozen": (code("self.requires_grad_(False)"), "all of its parameters have requires_grad"),
    "empty": (HEAD + "class Net(nn.Flatten):\n  def forward(self, x): return x.flatten(1)[:, :4]",
              "it has no parameters"),
    "tuple": (code(then="return self.head(x), x"), "gives a tuple"),
    "named": (code(then="from collections import namedtuple\n"
                       "        return namedtuple('Out', 'logits aux')(self.head(x), x)"),
              "gives a Out"),
    "dict": (code(then="return {'logits': self.head(x)}"), "gives a dict"),
    "none": (code(then="return None"), "gives a NoneType"),
    "training only": (code(then="if self.training: return self.head(x), x"), "gives a tuple"),
    "too few": (code("self.head = nn.Linear(4, 1)"), r"shape \(2, 1\) for 2 images, and not"),
    "spatial": (code(then="return self.head(x)[:, :, None, None]"), r"shape \(2, 4, 1, 1\)"),
    "batch second": (code(then="return self.head(x).T"), r"shape \(4, 2\)"),
    "fixed batch": (code(then="x = x.view(32, -1)"), "RuntimeError: shape .*mynets.py, line 12"),
    "more": (code().replace("forward(self, x)", "forward(self, x, age)"), r"\(x, age\): mis"),
    "keyword": (code().replace("forward(self, x)", "forward(self, x, *, age)"), "'age'"),
    "no input": (code().replace("forward(self, x)", "forward(self)"), "too many positional"),
    "nan": (code(then="return self.head(x) * float('nan')"), "gives NaN or infinity"),
    "log": (code(then="x = (x - 9).log()"), "gives NaN or infinity"),
    "integers": (code(then="return self.head(x).long()"), "gives outputs of torch.int64"),
    "detached": (code(then="return self.head(x).detach()"), "no trainable parameter"),
    "no grad": (code(then="with torch.no_grad(): return self.head(x)"), "no trainable parameter"),
    "channels": (code("self.conv = nn.Conv2d(3, 4, 3)"), "to have 3 channels, but got 1"),
    "key": (code("{}['width']"), r"cannot be made: KeyError: 'width' \(mynets.py, line 9\)"),
    "raises": (code("raise NotImplementedError"), r"NotImplementedError \(mynets.py, line 9\)"),
    "exits": (code("raise SystemExit(0)"), "cannot be made: SystemExit: 0"),
    "says nothing": (code("raise Mute") + "class Mute(Exception):\n  def __str__(self): 1 / 0",
                     "cannot be made: Mute"),
    "forward exits": (code(then="raise SystemExit"), r"SystemExit \(mynets.py, line 12\)"),
    "forward key": (code(then="{}['x']"), r"KeyError: 'x' \(mynets.py, line 12\)"),
    "recursion": (code(then="return self(x[:, :, None, None])"), "cannot take batches of"),
    "backward": (code(then="x = x.exp(); y = x * x; x.add_(1); return self.head(y)"),
                 "has no gradient for"),
    "train": (code() + "    def train(self, mode=True): super().train(mode)", "a train\\(\\) that"),
    "lazy unused": (code("self.aux = nn.LazyLinear(3)"), "'aux.weight' never gets a shape"),
    "not installed": ("import surely_not_installed", "needs surely_not_installed"),
    "broken import": ("from math import surely_not_there", "ImportError: cannot import name"),
    "syntax": ("class Net(:", r"SyntaxError: .*mynets.py, line 1"),
    "null": (HEAD + "\0", "cannot be imported"),
    "division": ("1 / 0", r"ZeroDivisionError: division by zero \(mynets.py, line 1\)"),
    "exit": ("import sys\nsys.exit(3)", r"SystemExit: 3 \(mynets.py, line 2\)"),
    "no class": (HEAD + "class Nett(nn.Module): pass", "has no 'Net'; did you mean Nett?"),
    "value": ("Net = 3", "is a int; name its class"),
    "instance": (HEAD + "Net = nn.Linear(1, 1)", "is a network already; name its class"),
    "no module": ("def Net(): return 3", "gives a int, not a module"),
    "other names": (code().replace("channels", "in_chans"), "missing .*: 'in_chan"),
    "torch's file": ("import torchvision.models as m\nm.surely_not_there", "cannot be imported"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("private", [False, True])
def test_faulty_network_is_named_in_one_sentence(
    fault: str, *, private: bool, tmp_path: Path
) -> None:
    source, words = FAULTS[fault]
    federation = tiny_federation(
        model=module(tmp_path, source),
        trainer=TRAINERS[private],
        **({"privatizer": PRIVATE} if private else {}),
    )
    with pytest.raises(NetworkError, match=words) as caught:
        federation.prepare()
    sentence = str(caught.value)
    assert "mynets" in sentence
    assert "\n" not in sentence
    assert "plugin" not in sentence
    assert sentence.endswith((".", "?"))


def test_invalid_network_arguments_error_names_remedy(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"'depth'; .*\[model.arguments\]\."):
        tiny_federation(model=module(tmp_path, code(), depth=3)).prepare()


LAZY = (
    HEAD
    + """
class Net(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.conv, self.norm = nn.LazyConv2d(4, 3, 2, 1), nn.Identity()
        self.head = nn.LazyLinear(classes)
    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().flatten(1))
"""
)


def test_lazy_layers_are_seeded_reproducibly(tmp_path: Path) -> None:
    model, spec = module(tmp_path, LAZY), QuadrantImages().load().spec
    state = torch.get_rng_state()
    one, again, other = (build_network(model, spec, seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert parameters.length(one) == 4 * 10 + 64 * 4 + 4
    assert parameters.sha256(one) == parameters.sha256(again) != parameters.sha256(other)
    for trainer, privatizer in ((TRAINERS[0], "none"), (TRAINERS[1], PRIVATE)):
        done = tiny_federation(model=model, trainer=trainer, privatizer=privatizer).run(
            tmp_path / f"run {type(trainer).__name__}"
        )
        assert parameters.sha256(Classifier.open(done.folder).net) == done.weights_sha256  # type: ignore[arg-type]


BATCH_NORM = code("self.norm = nn.BatchNorm1d(4)", "x = self.norm(x)")
SQUEEZED = code(then="x = x[..., None].squeeze()")


@pytest.mark.parametrize("source", [BATCH_NORM, SQUEEZED])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_network_needing_batches_gets_no_single_image(
    source: str, trainer: object, tmp_path: Path
) -> None:
    # 40 images a site, of which batches of 39 leave one over.
    trainer = FedSGD(sampling_rate=0.03) if isinstance(trainer, FedSGD) else trainer
    federation = tiny_federation(model=module(tmp_path, source), trainer=trainer, rounds=3)
    assert federation.prepare().run_config.workload.fewest == 2
    assert federation.run().rounds == 3
    shared = tiny_federation(
        model=module(tmp_path, source), trainer=TRAINERS[1], privatizer=PRIVATE
    )
    with pytest.raises(PrivacyError, match=r"^mynets:Net"):
        shared.prepare()


def test_single_image_network_has_minimum_batch_one(tmp_path: Path) -> None:
    spatial = code("self.norm = nn.BatchNorm2d(4)").replace("conv(x)", "norm(self.conv(x))")
    for source, trainer in (
        (code(), FedAvg()),
        (spatial, FedAvg()),
        (
            BATCH_NORM,
            FedAvg(flips=True, augmentation_multiplicity=2),
        ),  # a batch of one is a batch of two
    ):
        model = module(tmp_path, source)
        assert (
            tiny_federation(model=model, trainer=trainer).prepare().run_config.workload.fewest == 1
        )
        sys.modules.pop("mynets", None)


def test_batch_norm_with_single_image_batches_is_refused(tmp_path: Path) -> None:
    model = module(tmp_path, BATCH_NORM)
    with pytest.raises(NetworkError, match=r"^mynets:Net .*batch_size is 1; raise it"):
        tiny_federation(model=model, trainer=FedAvg(batch_size=1)).prepare()
    with pytest.raises(StudyError, match=r"site 2 has 1 image, .*no fewer than 2"):
        tiny_federation(model=model, dataset=QuadrantImages(examples=8), sites=6).prepare()


@pytest.mark.parametrize("examples", range(1, 40))
@pytest.mark.parametrize("size", [2, 3, 8, 64])
def test_pass_shows_each_example_once(examples: int, size: int) -> None:
    def batches(fewest: int) -> list[list[int]]:
        workload = Workload(
            output="update", steps=1, sampling_rate=1, batch_size=size, epochs=2, fewest=fewest
        )
        stream = Randomness.insecure_from_seed(1).stream("batches")
        return [batch.tolist() for batch in shuffled_batches(workload, examples, stream)]

    alone = batches(1)
    assert [len(b) for b in alone[: len(alone) // 2]] == [
        min(size, examples - start) for start in range(0, examples, size)
    ]
    if examples > 1:
        joined = batches(2)
        assert list(chain(*joined)) == list(chain(*alone))
        assert min(map(len, joined)) >= 2
        assert max(map(len, joined)) <= size + 1


SOMETIMES = (
    code("self.seen = 0", "if self.training and (x.std() > 0): self.blow(x)")
    + """
    def blow(self, x):
        self.seen += 1
        if self.seen > 8: {}['bright']
"""
)


def test_network_failing_during_run_is_named(tmp_path: Path) -> None:
    model = module(tmp_path, SOMETIMES)
    words = r"^mynets:Net failed in round \d: KeyError: 'bright' \(mynets.py, line \d+\)\.$"
    with pytest.raises(BrokenNetworkError, match=words) as caught:
        tiny_federation(model=model).run(tmp_path / "run")
    assert caught.value.exit_code == 1
    assert isinstance(caught.value.__cause__, KeyError)


def test_changing_output_shape_is_networks_fault(tmp_path: Path) -> None:
    source = code("self.seen = 0", "x = x[:, :4]").replace(
        "return self.head(x)",
        "self.seen += self.training\n        out = self.head(x)\n"
        "        return out[:, :2] if self.seen > 8 and self.training else out",
    )
    with pytest.raises(BrokenNetworkError, match=r"^mynets:Net gives outputs of shape \(\d+, 2\)"):
        tiny_federation(model=module(tmp_path, source)).run()


def test_model_without_outputs_per_pixel_is_refused_with_one_that_has_them() -> None:
    with pytest.raises(NetworkError, match=r"model 'cnn' gives .*, such as 'unet'\.$"):
        tiny_federation(
            dataset=PhantomFields(labels="masks", examples=40, test=0, validation=0), model=CNN()
        ).prepare()


def test_network_failing_on_prediction_is_named(tmp_path: Path) -> None:
    model = module(tmp_path, SQUEEZED)
    done = tiny_federation(model=model).run(tmp_path / "run")
    classifier = Classifier.open(done.folder)  # type: ignore[arg-type]
    assert classifier.predict(np.zeros((2, 1, 8, 8), np.uint8)).shape == (2, 4)
    with pytest.raises(BrokenNetworkError, match=r"^mynets:Net .*batch of 1; .*flatten\(1\)"):
        classifier.predict(np.zeros((1, 1, 8, 8), np.uint8))


def test_in_place_network_leaves_images_unchanged(tmp_path: Path) -> None:
    source = code().replace("x = self.conv(x)", "x = self.conv(x.add_(0.25))")
    model = module(tmp_path, source)
    result = tiny_federation(model=model, rounds=3).run()
    aside = code().replace("x = self.conv(x)", "x = self.conv(x.add(0.25))")
    (tmp_path / "aside").mkdir()
    expected = tiny_federation(model=module(tmp_path / "aside", aside), rounds=3).run()
    assert [e.scores.loss for e in result.history] == [e.scores.loss for e in expected.history]  # type: ignore[union-attr]


def test_network_function_is_named_as_written(tmp_path: Path) -> None:
    source = (
        HEAD + "def make(classes):\n  return nn.Sequential(nn.Flatten(), nn.Linear(63, classes))"
    )
    with pytest.raises(NetworkError, match=r"^mynets:make cannot take"):
        tiny_federation(model=module(tmp_path, source, "make")).prepare()


class Mine(CNN):
    """Composed in Python, and offered by no plugin."""

    def build(self, spec: DataSpec, seed: int) -> nn.Module:
        return nn.Flatten()


def test_model_errors_name_plugin_or_class() -> None:
    assert name_of(CNN()) == "model 'cnn'"
    with pytest.raises(NetworkError, match=r"^[a-z_.]*test_networks:Mine cannot be trained"):
        tiny_federation(model=Mine()).prepare()


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), 1e300])
@pytest.mark.parametrize("trainer", ["fedavg", "fedprox", "fedsgd", "fedmic"])
def test_invalid_class_weight_is_refused_when_read(weight: float, trainer: str) -> None:
    from cohortium import Federation

    text = re.sub(r"^'|'$", "", repr(weight))
    run_config = f"trainer.class_weights=[1.0, {text}, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]"
    with pytest.raises(StudyError, match="class_weights") as caught:
        Federation.read(None, [f"trainer.name={trainer}", run_config])
    assert "\n" not in str(caught.value)
