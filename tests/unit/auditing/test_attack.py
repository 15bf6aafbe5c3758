"""Gradient inversion by the study's own coordinator."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from attrs import frozen
from torch import Tensor, nn

from cohortium.auditing.attack import attack
from cohortium.auditing.attack_images import OTHERS, made_up_images
from cohortium.auditing.inversion import Inversion
from cohortium.data.examples import DataSpec
from cohortium.errors import CohortiumError, DataError, RequestError
from cohortium.reporting.attack_page import AttackFacts, render_attack_page, write_attack_page
from cohortium.runs.prepare import PreparedStudy
from cohortium.testing import samples
from cohortium_cnn import CNN
from cohortium_fedavg import FedAvg
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from cohortium_secagg import SecAgg
from tests.support.federations import QuadrantImages, tiny_federation

SHARED = SecAgg(reconstruction_threshold=3, num_shares=4)
NOISED = Gaussian(epsilon=6.0, noise="distributed")


@frozen
class Perceptron:
    """Two linear layers on the pixels, or on their means over `pool` × `pool` of them."""

    pool: int = 1

    def preprocess(self, images: Tensor) -> Tensor:
        if self.pool == 1:
            return images
        return torch.nn.functional.avg_pool2d(images, self.pool).flatten(1)

    def build(self, spec: DataSpec, seed: int) -> nn.Module:
        inputs = int(np.prod(spec.shape)) // self.pool**2
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Flatten(), nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, len(spec.classes))
            )


@frozen
class Normed:
    """A network that cannot be trained on one image."""

    def preprocess(self, images: Tensor) -> Tensor:
        return images

    def build(self, spec: DataSpec, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Conv2d(spec.channels, 2, 3, 4), nn.Flatten(), nn.Linear(8, 4),
                nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, len(spec.classes)),
            )  # fmt: skip


def play(**changes: Any) -> AttackFacts:
    steps = changes.pop("steps", 60)
    images = changes.pop("images", "made-up")
    return attack(study(**changes), steps=steps, images=images)


def study(**changes: Any) -> PreparedStudy:
    parts: dict[str, Any] = {
        "dataset": QuadrantImages(examples=80), "model": Perceptron(),
        "trainer": FedSGD(sampling_rate=1.0), "privatizer": NOISED, "aggregator": SHARED,
        "min_contributors": 4, "max_colluding": 1, "sites": 4, "seed": 3,
    }  # fmt: skip
    return tiny_federation(**(parts | changes)).prepare()


def unprotected(**changes: Any) -> AttackFacts:
    return play(
        privatizer="none", aggregator="plain", min_contributors=1, max_colluding=0, **changes
    )


@pytest.fixture(scope="module")
def facts() -> AttackFacts:
    return play()


def test_attack_finds_bare_image_and_not_noised(facts: AttackFacts) -> None:
    bare, summed, seen = facts.strips
    assert (bare.kind, bare.images, bare.is_seen) == ("bare", 1, False)
    assert bare.is_found
    assert bare.score > 0.99
    assert (bare.lineup.rank, bare.lineup.share) == (1, 1.0)
    assert bare.lineup.p_value == pytest.approx(1 / (OTHERS + 1))
    assert "It is number 1 of 65 candidates" in bare.sentence
    assert (summed.kind, summed.sites, summed.images) == ("summed", 4, 80)
    assert (seen.kind, seen.is_seen, seen.sites, seen.images) == ("seen", True, 4, 80)
    assert not seen.is_found
    assert "did not find" in seen.sentence
    assert "of pairs, which is not told apart from chance (50 %" in seen.sentence
    assert "not below 0.001)" in seen.sentence
    assert "proves nothing. The guarantee bounds every attack (ε = 6" in seen.sentence


def test_gradient_matching_finds_bare_image_and_not_noised() -> None:
    facts = play(model=CNN(), steps=100)
    bare, _, seen = facts.strips
    assert bare.is_found
    assert bare.score > 0.9
    assert bare.lineup.rank == 1
    assert "infers the label" in bare.method
    # Smooth images correlate by luck. The most similar of both kinds is of either as often.
    assert not seen.is_found
    assert not seen.lineup.is_better_than_chance
    assert not facts.is_open


@pytest.mark.parametrize("pool", [1, 2])
def test_noised_release_tells_images_from_unrelated_ones_no_better_than_chance(pool: int) -> None:
    seeds = 8
    prepared = study(model=Perceptron(pool=pool))
    plays = [attack(prepared, steps=60, seed=seed).strips for seed in range(seeds)]
    seen = [strips[-1] for strips in plays]
    assert [strip.kind for strip in seen] == ["seen"] * seeds
    assert not any(strip.is_found or strip.lineup.is_better_than_chance for strip in seen)
    # The variance of a share, under the hypothesis that both kinds are alike.
    n, m = seen[0].images, seen[0].others
    error = math.sqrt((n + m + 1) / (12 * n * m) / seeds)
    shares = [strip.lineup.share for strip in seen]
    assert abs(float(np.mean(shares)) - 0.5) < 4 * error
    # With the same images and without protection, each one is picked out of 65.
    assert [strips[0].lineup.rank for strips in plays] == [1] * seeds


def test_exact_sum_of_few_images_tells_them_from_unrelated_ones() -> None:
    """The lineup notices what no reconstruction shows."""
    prepared = study(dataset=QuadrantImages(examples=8), privatizer="none")
    summed = [attack(prepared, steps=60, seed=seed).strips[1] for seed in range(8)]
    assert np.mean([strip.lineup.share for strip in summed]) > 0.6


def test_features_identify_bare_image() -> None:
    bare, _, seen = play(model=Perceptron(pool=2)).strips
    assert "most similar features" in bare.method
    assert bare.is_found
    assert np.array_equal(bare.guesses[0].found, bare.guesses[0].truth)
    assert not seen.is_found


def test_unprotected_site_of_one_image_is_open() -> None:
    one = QuadrantImages(examples=4)
    facts = unprotected(dataset=one, trainer=FedAvg(learning_rate=0.1, batch_size=1))
    seen = facts.strips[-1]
    assert (seen.kind, seen.is_seen, seen.sites, seen.images) == ("seen", True, 1, 1)
    assert seen.is_found
    assert facts.is_open
    assert any("no guarantee" in note for note in facts.notes)
    assert any("single site" in note for note in facts.notes)


def test_exact_sum_is_seen_without_noise() -> None:
    facts = play(privatizer="none")
    assert [strip.kind for strip in facts.strips] == ["bare", "summed"]
    assert facts.strips[1].is_seen
    assert "no guarantee bounds" in facts.strips[1].sentence or facts.strips[1].is_found


def test_attack_repeats_with_equal_seeds() -> None:
    one, other = (unprotected(steps=5).as_json() for _ in range(2))
    assert one == other


def test_study_images_must_be_asked_for() -> None:
    facts = unprotected(steps=5, images="study")
    assert facts.is_study
    prepared = tiny_federation(dataset=QuadrantImages(examples=80)).prepare()
    stored = prepared.splits.train.images / np.float32(255)
    bare = facts.strips[0].guesses[0].truth
    assert any(np.allclose(bare, image) for image in stored)
    assert "images of patients" in render_attack_page(facts)


@pytest.mark.parametrize("size", [(9, 12), (6, 8, 8)])
@pytest.mark.parametrize("pixel_type", ["uint8", "int16", "float32"])
def test_made_up_images_fit_the_study(size: tuple[int, ...], pixel_type: Any) -> None:
    run_config = tiny_federation(dataset=QuadrantImages(examples=24)).prepare().run_config
    spec = attrs.evolve(
        samples.spec(2, *size), pixel_type=pixel_type, intensity_range=(-100.0, 155.0)
    )
    images = made_up_images(attrs.evolve(run_config, spec=spec), 0)
    assert len(images.sites) == 6
    assert len(images.others) >= OTHERS
    for site in images.sites:
        assert site.images.shape[1:] == spec.shape
        assert site.images.dtype == pixel_type
        assert spec.task.check_labels(site.labels, spec.size) == ""
    first = images.sites[0].images.reshape(len(images.sites[0]), -1).astype(float)
    assert (np.abs(np.corrcoef(first))[np.triu_indices(len(first), 1)] < 0.999).all()


def test_label_is_inferred_from_the_bias() -> None:
    spec = samples.spec(1, 8, 8)
    net = Perceptron().build(spec, 0)
    for label in range(4):
        loss = spec.task.losses(net(torch.rand(1, 1, 8, 8)), torch.tensor([label])).mean()
        grads = torch.autograd.grad(loss, list(net.parameters()))
        gradient = torch.cat([g.flatten() for g in grads])
        found = Inversion(model=Perceptron(), spec=spec, net=net, gradient=gradient).infer_label()
        assert found is not None
        assert found.tolist() == [label]


def test_bare_update_has_the_fewest_images_possible() -> None:
    bare = unprotected(model=Normed(), steps=2).strips[0]
    assert bare.images == len(bare.guesses) == 2
    assert "has the labels" in bare.method


def test_empty_batches_are_refused() -> None:
    with pytest.raises(RequestError, match="another --seed"):
        unprotected(trainer=FedSGD(sampling_rate=1e-6))


def test_attack_page_shows_strips_and_nothing_else(tmp_path: Path, facts: AttackFacts) -> None:
    write_attack_page(facts, tmp_path / "attack.html")
    page = (tmp_path / "attack.html").read_text()
    assert "<script" not in page
    assert "http://" not in page and "https://" not in page  # noqa: PT018
    assert "All images are made up." in page
    assert page.count("<img") == 2 * sum(len(strip.guesses) for strip in facts.strips)
    assert (tmp_path / "attack.html").stat().st_mode & 0o077 == 0
    (tmp_path / "other.html").write_text("mine")
    with pytest.raises(CohortiumError, match="no page of an attack"):
        write_attack_page(facts, tmp_path / "other.html")


def test_study_images_need_unrelated_ones() -> None:
    @frozen
    class Few(QuadrantImages):
        def load(self) -> Any:
            return attrs.evolve(super().load(), validation=None, test=None)

    with pytest.raises(DataError, match="made-up"):
        unprotected(dataset=Few(examples=80), images="study")
