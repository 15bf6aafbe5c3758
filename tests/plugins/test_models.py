from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve

from cohortium import Federation
from cohortium.plugin import DataSpec, Model, Multiclass, Seeds, StudyError, parameters
from cohortium_cnn import CNN
from cohortium_descriptor import Descriptor
from cohortium_dpresnet import DPResNet
from cohortium_fedavg import FedAvg
from cohortium_fedsgd import FedSGD
from cohortium_phantom import Phantom
from cohortium_pretrained import Pretrained
from cohortium_resnet9 import ResNet9
from cohortium_resnet18 import ResNet18
from cohortium_scatternet import ScatterNet

SPEC = DataSpec(
    channels=3, size=(28, 28), task=Multiclass(tuple("abcdefgh")), examples=100
)  # BloodMNIST's shape


def test_dpresnet_has_the_papers_parameters() -> None:
    assert parameters.length(DPResNet(width=64).build(SPEC, seed=0)) == 4_802_120


@pytest.mark.parametrize("width", [1, 4, 16, 20])
def test_dpresnet_takes_any_width(width: int) -> None:
    net = DPResNet(width=width).build(SPEC, seed=0)
    assert net(torch.zeros(2, 3, 28, 28)).shape == (2, 8)


def test_dpresnet_matches_paper_layers() -> None:
    net = DPResNet(width=64).build(SPEC, seed=0)
    convolutions = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.stride[0]) for c in convolutions] == [
        (3, 64, 1), (64, 128, 1), (128, 128, 1), (128, 128, 1),
        (128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1),
    ]  # fmt: skip
    assert all(c.bias is None and c.kernel_size == (3, 3) for c in convolutions)
    norms = [m for m in net.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert {n.num_groups for n in norms} == {32}
    # Nothing follows the sum of the residual pair: its output takes both signs.
    images = torch.randn(2, 3, 28, 28)
    stem = net.stem(images)  # type: ignore[operator]
    assert float((stem + net.residual(stem)).detach().min()) < 0  # type: ignore[operator]


@torch.no_grad()
def test_standardised_kernels_ignore_offset_and_scale() -> None:
    nets = [DPResNet(width=4, standardise=s).build(SPEC, seed=0) for s in (False, True)]
    sizes = [[p.shape for p in net.parameters()] for net in nets]
    assert sizes[0] == sizes[1]
    images = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    before = [net(images) for net in nets]
    for net in nets:
        for parameter in net.parameters():
            if parameter.ndim == 4:
                parameter.mul_(3).add_(0.5)
    assert torch.allclose(nets[1](images), before[1], atol=1e-4)
    assert not torch.allclose(nets[0](images), before[0], atol=1e-2)


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 28), (5, 8), (3, 64), (1, 224)])
def test_the_descriptor_takes_any_channels_and_size(channels: int, size: int) -> None:
    model = Descriptor()
    rows = model.preprocess(torch.rand(3, channels, size, size))
    assert rows.shape == (3, model.dimension(channels))
    assert torch.allclose(rows.norm(dim=1), torch.full((3,), model.norm), rtol=1e-4)


def test_descriptor_is_invariant_to_flips() -> None:
    # Rings and radial gradients are symmetric, so the features are those of the mirrored image.
    images = torch.rand(4, 3, 28, 28)
    model = Descriptor()
    assert torch.allclose(model.preprocess(images), model.preprocess(images.flip(3)), atol=1e-2)
    assert torch.allclose(
        model.preprocess(images), model.preprocess(images.rot90(1, (2, 3))), atol=1e-2
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_standardized_descriptor_ignores_exposure(channels: int) -> None:
    images = 0.3 + 0.4 * torch.rand(4, channels, 28, 28)
    darker = 0.5 * images + 0.1
    plain, standardized = Descriptor(), Descriptor(standardize=True)
    kept = images.clone()
    rows = standardized.preprocess(images)
    assert torch.equal(images, kept)
    assert torch.allclose(rows, standardized.preprocess(darker), atol=1e-2)
    assert not torch.allclose(plain.preprocess(images), plain.preprocess(darker), atol=1)
    # The features of an image depend on no other image.
    assert torch.allclose(rows[1:2], standardized.preprocess(images[1:2]), atol=1e-4)


def test_standardized_descriptor_takes_an_image_of_one_value() -> None:
    black, white = torch.zeros(1, 3, 28, 28), torch.ones(1, 3, 28, 28)
    model = Descriptor(standardize=True)
    rows = model.preprocess(torch.cat([black, white]))
    assert torch.isfinite(rows).all()
    assert torch.allclose(rows[0], rows[1], atol=1e-3)


def test_descriptor_starts_at_zero_and_validates_input() -> None:
    net = Descriptor().build(SPEC, seed=3)
    assert not parameters.flatten(net).any()
    with pytest.raises(ValueError, match="at least 8 pixels"):
        Descriptor().preprocess(torch.rand(1, 1, 7, 20))
    with pytest.raises(ValueError, match="ascending"):
        Descriptor(radii=(0.5, 0.4))


@pytest.mark.slow
def test_phantom_is_learned_by_cnn_not_linear() -> None:
    splits = Phantom().load()
    train, test = (torch.from_numpy(p.images).float() / 255 for p in (splits.train, splits.test))  # type: ignore[union-attr]
    labels = torch.from_numpy(splits.train.labels)
    truth = torch.from_numpy(splits.test.labels)  # type: ignore[union-attr]

    def accuracy(net: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int) -> float:
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        generator = torch.Generator().manual_seed(0)
        for _ in range(epochs):
            for batch in torch.split(torch.randperm(len(x), generator=generator), 64):
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(net(x[batch]), labels[batch])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            schedule.step()
        with torch.no_grad():
            return float((net(y).argmax(1) == truth).float().mean())

    spec = splits.spec
    linear = torch.nn.Linear(3 * 28 * 28, 8)
    assert accuracy(linear, train.flatten(1) - 0.5, test.flatten(1) - 0.5, 12) < 0.8
    cnn = CNN().build(spec, Seeds(1).integer("weights"))
    prepare = CNN().preprocess
    assert accuracy(cnn, prepare(train), prepare(test), 12) > 0.9


def test_centering_removes_common_feature_mean() -> None:
    cells = Phantom(examples=64, validation=0, test=0)
    images = torch.from_numpy(Phantom(examples=48, seed=5).load().train.images).float() / 255
    plain, centred = Descriptor().preprocess(images), Descriptor(center_on=cells).preprocess(images)
    assert torch.allclose(centred.norm(dim=1), torch.full((48,), 70.0), rtol=1e-4)
    # What all rows share is most of what they are; centred, it is the smaller part.
    assert float(plain.mean(0).norm()) > 50
    assert float(centred.mean(0).norm()) < 20
    alone = Descriptor(center_on=cells).preprocess(images[3:4])
    assert torch.allclose(alone, centred[3:4], atol=1e-3)


def _cells(examples: int, seed: int) -> torch.Tensor:
    images = Phantom(examples=examples, validation=0, test=0, seed=seed).load().train.images
    return torch.from_numpy(images).float() / 255


def _spread(rows: torch.Tensor, directions: int) -> float:
    """The largest variance in any direction over the one of rank `directions`."""
    variances = torch.linalg.svdvals(rows - rows.mean(0)) ** 2
    return float(variances[0] / variances[directions])


def test_whitening_equalises_feature_variances() -> None:
    images, cells = _cells(200, seed=5), Phantom(examples=200, validation=0, test=0)
    spreads = [
        _spread(Descriptor(center_on=cells, whiten=share).preprocess(images), 20)
        for share in (0.0, 0.5, 1.0)
    ]
    assert spreads[0] > 3 * spreads[1] > 3 * spreads[2]


def test_components_set_feature_count_and_norm() -> None:
    cells = Phantom(examples=60, validation=0, test=0)
    model = Descriptor(center_on=cells, components=30, whiten=0.5)
    rows = model.preprocess(_cells(10, seed=5))
    assert rows.shape == (10, 30)
    assert torch.allclose(rows.norm(dim=1), torch.full((10,), model.norm), rtol=1e-4)
    assert model.build(SPEC, 0)(rows).shape == (10, 8)
    with pytest.raises(ValueError, match="vary in 59 directions only"):
        Descriptor(center_on=cells, components=60).preprocess(_cells(2, seed=5))
    with pytest.raises(ValueError, match="need center_on"):
        Descriptor(components=30)


def test_colour_centre_accepts_grey_images() -> None:
    model = Descriptor(center_on=Phantom(examples=40, validation=0, test=0), whiten=0.5)
    assert model.preprocess(torch.rand(2, 1, 28, 28)).shape == (2, model.dimension(1))
    with pytest.raises(ValueError, match="3 channels, and the data's have 4"):
        model.preprocess(torch.rand(2, 4, 28, 28))


def _learned(noise: str, rounds: int = 6) -> Any:
    return Federation(
        dataset=Phantom(examples=400, validation=0, test=60),
        model=Descriptor(
            center_on=Phantom(examples=100, validation=0, test=0, seed=9),
            components=24,
            private_whitening=True,
        ),
        trainer=FedSGD(sampling_rate=1.0, statistics_rounds=2, learning_rate=0.01),
        privatizer=noise,
        aggregator="plain",
        sites=2,
        rounds=rounds,
        evaluate_every=0,
    )


def test_statistics_loss_learns_second_moments_only() -> None:
    study = _learned("none", rounds=3)
    weights = study.run().weights
    rows = study.model.preprocess(
        torch.from_numpy(study.dataset.load().train.images).float() / 255
    ).double()
    wanted = rows.T @ rows
    found = weights["moments.weight"].double()
    gap = found / found.trace() - wanted / wanted.trace()
    assert float(gap.abs().max()) < 1e-4
    # The labels' one round has moved the head, and left the moments as they were.
    assert float(weights["head.weight"].abs().max()) > 0


def test_learned_moments_whiten_head_inputs() -> None:
    study = _learned("none")
    result = study.run()
    net = study.model.build(study.dataset.load().spec, 0)
    net.load_state_dict(result.weights)
    rows = study.model.preprocess(_cells(300, seed=3))
    seen: list[torch.Tensor] = []
    net.head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    net(rows)
    assert torch.allclose(seen[0].norm(dim=1), torch.full((300,), 70.0), rtol=1e-4)
    assert _spread(seen[0], 20) < _spread(rows, 20) / 2


@pytest.mark.parametrize(
    "trainer", [FedSGD(average_last_fraction=0.5), FedAvg(average_last_fraction=0.5)]
)
def test_the_last_weights_are_averaged(trainer: FedSGD | FedAvg) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer, course = trainer.make_server_optimizer([weight], 4)
    seen = []
    for _ in range(4):
        weight.grad = torch.ones(1)
        optimizer.step()
        course.step()
        seen.append(float(weight.detach()))
    plain = torch.nn.Parameter(torch.zeros(1))
    optimizer, course = type(trainer)().make_server_optimizer([plain], 4)
    wanted = []
    for _ in range(4):
        plain.grad = torch.ones(1)
        optimizer.step()
        course.step()
        wanted.append(float(plain.detach()))
    assert seen[:3] == wanted[:3]
    assert seen[3] == pytest.approx((wanted[2] + wanted[3]) / 2)


def test_statistics_loss_is_private_too() -> None:
    result = _learned("gaussian").run()
    assert result.guarantee is not None
    assert all(bool(w.isfinite().all()) for w in result.weights.values())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"trainer": FedSGD(statistics_rounds=2), "model": "descriptor"}, "the model has none"),
        ({"trainer": FedSGD(statistics_rounds=6)}, "leaves none of 6 rounds"),
        ({"trainer": FedAvg()}, "has no rounds for it"),
    ],
)
def test_statistics_loss_without_support_is_refused(changes: dict[str, Any], sentence: str) -> None:
    from attrs import evolve

    with pytest.raises(StudyError, match=sentence):
        evolve(_learned("none"), **changes).prepare()


def test_statistics_loss_without_rounds_is_warned_of(tmp_path: Path) -> None:
    from attrs import evolve

    from cohortium.runs.forecast import forecast
    from tests.support.federations import RecordingObserver

    seen = RecordingObserver()
    study = evolve(_learned("none", rounds=1), trainer=FedSGD(sampling_rate=1.0))
    warnings = forecast(study.prepare())[0].warnings
    assert [text for text in warnings if text.startswith("trainer.statistics_rounds is 0")]
    study.run(observers=[seen])
    assert seen.events[0].warnings == warnings  # type: ignore[union-attr]
    for quiet in (_learned("none"), evolve(study, model="descriptor")):
        assert forecast(quiet.prepare())[0].warnings == ()


CELLS = Phantom(examples=64, validation=0, test=0)


def test_pretraining_keeps_its_network_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "kept" / "cells.safetensors"
    model = Pretrained(images=CELLS, width=4, epochs=1, weights=str(file))
    images = _cells(5, seed=5)
    rows = model.preprocess(images)
    assert rows.shape == (5, 48)
    again = Pretrained(images=CELLS, width=4, epochs=1, weights=str(file))
    assert torch.equal(again.preprocess(images), rows)
    other = Pretrained(images=CELLS, width=4, epochs=2, weights=str(file))
    with pytest.raises(StudyError, match="trained otherwise"):
        other.preprocess(images)
    file.write_bytes(b"no weights")
    with pytest.raises(StudyError, match="not a file of this network's weights"):
        Pretrained(images=CELLS, width=4, epochs=1, weights=str(file)).preprocess(images)


def test_pretraining_beats_chance_on_its_images() -> None:
    cells = Phantom(examples=600, validation=0, test=0)
    net, _ = Pretrained(images=cells, width=8, epochs=4)._trained
    train = cells.load().train
    images = torch.from_numpy(train.images).float() / 255
    with torch.no_grad():
        found = net(images.sub(0.5).div(0.5)).argmax(1)
    assert float((found == torch.from_numpy(train.labels)).float().mean()) > 0.28


@pytest.mark.parametrize(
    "network", [None, DPResNet(width=4), ResNet9(width=4, norm="group"), ResNet18(width=4)]
)
def test_trainable_setting_selects_pretrained_parameters(network: Model | None) -> None:
    def model(learn: Any) -> Pretrained:
        return Pretrained(images=CELLS, network=network, width=4, epochs=1, trainable=learn)

    everything, norms = model("everything").build(SPEC, 0), model("norms").build(SPEC, 0)
    assert len(parameters.trainable(everything)) == len(list(everything.parameters()))
    named = dict(norms.named_modules())
    learned = [named[n.rpartition(".")[0]] for n, p in norms.named_parameters() if p.requires_grad]
    kinds = {type(layer) for layer in learned}
    assert kinds == {torch.nn.GroupNorm, torch.nn.Linear}
    assert learned.count(norms.head) == 2
    # Before training they are one function, with what the cells taught and a head at zero.
    images = _cells(3, seed=5)
    inputs = model("norms").preprocess(images)
    assert inputs.shape == images.shape
    assert not norms(inputs).any()
    maps = norms.maps(inputs)  # type: ignore[operator]
    assert torch.equal(maps, everything.maps(inputs))  # type: ignore[operator]
    rows = model("head").preprocess(images)
    assert rows.shape == (3, 3 * maps.shape[1])
    assert torch.allclose(rows.norm(dim=1), torch.full((3,), 70.0), rtol=1e-4)


def test_pretrained_features_are_whitened_on_pretraining_images() -> None:
    images = _cells(200, seed=5)
    spreads = [
        _spread(Pretrained(images=CELLS, width=4, epochs=1, whiten=w).preprocess(images), 10)
        for w in (0.0, 0.5, 1.0)
    ]
    assert spreads[0] > 2 * spreads[1] > 2 * spreads[2]
    alone = Pretrained(images=CELLS, width=4, epochs=1, whiten=1.0)
    rows = alone.preprocess(images[:5])
    assert torch.allclose(rows[3:4], alone.preprocess(images[3:4]), atol=1e-2)
    head = Pretrained(images=CELLS, width=4, epochs=1, private_whitening=True).build(SPEC, 0)
    assert {n for n, _ in head.named_parameters()} == {"moments.weight", "head.weight", "head.bias"}
    with pytest.raises(ValueError, match="with trainable = 'norms' the network takes images"):
        Pretrained(images=CELLS, trainable="norms", private_whitening=True)


def test_pretrained_file_is_shared_between_trainable_settings(tmp_path: Path) -> None:
    def model(learn: Any, width: int = 4) -> Pretrained:
        return Pretrained(
            images=CELLS,
            network=DPResNet(width=width),
            epochs=1,
            trainable=learn,
            weights=str(tmp_path / "kept.safetensors"),
        )

    kept = model("norms").build(SPEC, 0).state_dict()
    written = (tmp_path / "kept.safetensors").stat().st_mtime_ns
    again = model("everything").build(SPEC, 1).state_dict()
    assert all(torch.equal(kept[name], again[name]) for name in kept)
    assert (tmp_path / "kept.safetensors").stat().st_mtime_ns == written
    with pytest.raises(StudyError, match="trained otherwise"):
        model("head", width=5).build(SPEC, 0)


@pytest.mark.parametrize("model", [Descriptor(), ScatterNet(), Pretrained(images=CELLS)], ids=str)
def test_volumes_are_refused_by_flat_features(model: Model) -> None:
    with pytest.raises(StudyError, match="takes images of 2 axes, and these have 3; use 'cnn'"):
        model.preprocess(torch.rand(2, 1, 12, 12, 12))


def test_a_network_without_maps_is_refused() -> None:
    with pytest.raises(StudyError, match="no method 'maps'"):
        Pretrained(images=CELLS, network=CNN()).build(SPEC, 0)


def test_pretrained_features_ignore_rotation_and_accept_grey() -> None:
    model = Pretrained(images=CELLS, width=4, epochs=1)
    images = _cells(3, seed=5)
    assert torch.allclose(
        model.preprocess(images), model.preprocess(images.rot90(1, (2, 3))), atol=1e-2
    )
    assert model.preprocess(torch.rand(2, 1, 28, 28)).shape == (2, 48)


@pytest.mark.parametrize(
    ("network", "channels"),
    [
        (None, (4, 8, 8, 16)),
        (DPResNet(width=2), (4, 8, 16)),
        (ResNet9(width=2, norm="group"), (4, 16)),
        (ResNet18(width=2), (2, 4, 8, 16)),
    ],
    ids=str,
)
def test_pretrained_features_of_several_stages(
    network: Model | None, channels: tuple[int, ...]
) -> None:
    def model(**terms: Any) -> Pretrained:
        cells = Phantom(examples=16, validation=0, test=0)
        return Pretrained(images=cells, network=network, width=4, epochs=1, **terms)

    images, maps = _cells(3, seed=5), sum(channels)
    last = model().preprocess(images)
    every = model(stages=len(channels))
    rows = every.preprocess(images)
    assert rows.shape == (3, 3 * maps)
    assert (rows >= 0).all()
    assert len(parameters.flatten(every.build(SPEC, 0))) == (3 * maps + 1) * len(SPEC.classes)
    ending = rows[:, -last.shape[1] :]
    lengths = ending.norm(dim=1, keepdim=True)
    assert torch.allclose(ending * 70 / lengths, last, rtol=1e-4, atol=1e-3)
    with pytest.raises(StudyError, match=f"its network names {len(channels)}; lower stages"):
        model(stages=len(channels) + 1).preprocess(images)


def test_pretrained_features_with_squares() -> None:
    model = Pretrained(images=CELLS, width=4, epochs=1, squares=True)
    images = _cells(3, seed=5)
    rows = model.preprocess(images)
    assert rows.shape == (3, 96)
    means, squares = rows[:, :48], rows[:, 48:]
    # The mean of squares is at least the square of the mean, and more where the map varies.
    assert (squares >= means - 1e-3).all()
    assert float((squares - means).max()) > 0.1
    assert torch.allclose(model.preprocess(images.rot90(1, (2, 3))), rows, atol=1e-2)
    assert model.preprocess(images[:0]).shape == (0, 96)
    assert len(parameters.flatten(model.build(SPEC, 0))) == 97 * len(SPEC.classes)
    with pytest.raises(
        ValueError, match="squares, parts and components are for features; with train"
    ):
        Pretrained(images=CELLS, trainable="norms", squares=True)


def test_pretrained_features_are_projected() -> None:
    whole = Pretrained(images=CELLS, width=4, epochs=1, whiten=1.0)
    model = evolve(whole, components=12)
    images = _cells(200, seed=5)
    rows = model.preprocess(images)
    assert rows.shape == (200, 12)
    assert torch.allclose(rows.norm(dim=1), torch.full((200,), 70.0), rtol=1e-4)
    assert _spread(rows, 10) < 10
    assert len(parameters.flatten(model.build(SPEC, 0))) == 13 * len(SPEC.classes)
    few = Phantom(examples=8, validation=0, test=0)
    with pytest.raises(ValueError, match="vary in 7 directions only"):
        Pretrained(images=few, width=4, epochs=1, components=12).preprocess(images)


def test_a_network_without_stages_has_one() -> None:
    model = Pretrained(images=CELLS, network=DPResNet(width=2), epochs=1, stages=2)
    net = model._untrained(SPEC)
    net.maps_by_stage = None
    with pytest.raises(StudyError, match="2 stages, and its network names 1; lower stages"):
        model._pooled(net, _cells(1, seed=5), _cells(1, seed=5))


def test_extra_features_weigh_as_much_as_descriptor() -> None:
    beside = Pretrained(images=CELLS, width=4, epochs=1)
    images = _cells(40, seed=5)
    model = Descriptor(center_on=CELLS, extra_features=beside, components=40)
    assert model.preprocess(images).shape == (40, 40)
    # Whatever the norm of the features beside, they come to weigh as much.
    longer = Pretrained(images=CELLS, width=4, epochs=1, norm=7.0)
    same = Descriptor(center_on=CELLS, extra_features=longer, components=40)
    gap = model.preprocess(images) - same.preprocess(images)
    assert float(gap.norm(dim=1).max()) < 0.1
    with pytest.raises(ValueError, match="extra_features needs components"):
        Descriptor(extra_features=beside)
