from __future__ import annotations

from typing import Any

import pytest

from cohortium.testing import ConformanceError, own_tensors, server_states, trainers
from cohortium_fedavg import FedAvg, FedProx
from cohortium_fedsgd import FedSGD
from tests.conformance import bad_trainers as they
from tests.conformance.bad_trainers import GOOD

BAD = [
    (trainers.check_no_leak, they.Decorrelated(), "loss of other examples changed"),
    (trainers.check_no_leak, they.Taught(), "loss of other examples changed"),
    (trainers.check_no_leak, they.Weighted(), "loss of other examples changed"),
    (trainers.check_no_leak, they.Normalised(), "loss of other examples changed"),
    (trainers.check_no_leak, they.StandardisesTheSite(), "loss of other examples changed"),
    (trainers.check_no_leak, they.SkipsHardOnes(), "the choice of gradients depends"),
    (
        trainers.check_no_leak,
        they.TrainsBeside(),
        "the vector changed when one example was replaced",
    ),
    (trainers.check_no_leak, they.KeepsAMean(), "the state changed"),
    (trainers.check_no_leak, they.UsesAnOldMean(), "the state changed"),
    *((trainers.check_no_leak, they.WeighsOneClass(k), "the weight changed") for k in range(4)),
    (trainers.check_no_leak, they.WeighsLabels(), "the weight changed"),
    (trainers.check_no_leak, they.WeighsBrightness(), "the weight changed"),
    (trainers.check_no_leak, they.OneLoss(), r"losses gave shape \(\)"),
    (trainers.check_declared_work, they.OwnBatches(), "called for no examples"),
    (trainers.check_declared_work, they.AsksTwice(), r"called for \[64, 64\] examples"),
    (trainers.check_declared_work, they.Halves(), "declares 2 steps a round, and 4 gradients"),
    (
        trainers.check_declared_work,
        they.Swaps(),
        "over other batches than privatizer.batches yielded",
    ),
    (trainers.check_declared_work, they.Releases(), "called release"),
    (trainers.check_vector, they.ParametersOnly(), "where parameters.flatten gives"),
    (trainers.check_vector, they.Explodes(), "NaN or infinity; lower"),
    (trainers.check_vector, they.Weightless(), "the weight is -1.0"),
    (trainers.check_vector, they.WorksInPlace(), "changed the site's images"),
    (trainers.check_empty_batches, they.DividesByTheBatch(), "empty batches made NaN"),
    (trainers.check_still_without_gradients, they.Jitters(), "Noise is the privatizer's"),
    (trainers.check_direction, they.SendsWeights(), "an update is new weights minus old"),
    (trainers.check_direction, they.SendsBackwards(), "declares that updates are released"),
    (trainers.check_training_is_repeatable, they.Remembers(), "gave two vectors"),
    (trainers.check_server, they.NoSchedule(), "a torch optimizer and a learning-rate schedule"),
    (trainers.check_server, they.HalfTheParameters(), "exactly the parameters"),
    (trainers.check_server, they.Climbs(), "did not go against the pseudo-gradient"),
    (trainers.check_personal, they.PersonalState(), "personal gave a dict"),
    (trainers.check_personal, they.PersonalBody(), r"gives shape \(2, 16\)"),
    (trainers.check_personal, they.PersonalInPlace(), "changed the global network"),
    (trainers.check_no_leak, they.CountsLabels(), "the further numbers of the release changed"),
    (server_states.check_server_state, they.TooMuch(), "extra_length declares 0"),
    (server_states.check_server_state, they.GradientAndMore(), "released with a gradient"),
    (server_states.check_server_state, they.MovesInPlace(), "changed its arguments"),
    (server_states.check_server_state, they.Grows(), "its length must not change"),
    (server_states.check_server_state, they.Doubles(), "must return a vector of float32"),
    (server_states.check_server_state, they.Wanders(), "two states for equal arguments"),
    (
        own_tensors.check_own_tensors,
        they.OwnReachesTheState(),
        "changed a tensor that it was given",
    ),
    (
        own_tensors.check_own_tensors,
        they.OwnReachesTheTrainer(),
        "depends on the site's own tensors",
    ),
    (own_tensors.check_own_tensors, they.OwnImagesInPlace(), "changed the site's images"),
    (own_tensors.check_own_tensors, they.OneName(), r"of one name \(mean\)"),
]

GOOD_ONES: dict[str, Any] = {
    "minimal": they.Local(),
    "server state": they.Drifting(),
    "own tensors": they.Owning(),
    "fedavg": GOOD,
    "adamw": FedAvg(optimizer="adamw", learning_rate=1e-3, optimizer_options={"weight_decay": 0.1}),
    "augmented": FedAvg(
        local_steps=2,
        flips=True,
        rotations=True,
        augmentation_multiplicity=2,
        class_weights=(1.0, 2.0, 1.0, 1.0),
        logit_adjustment=(0.0, -1.0, 0.5, 0.0),
    ),
    "fedprox": FedProx(mu=0.5),
    "fedsgd": FedSGD(augmentation_multiplicity=3, flips=True),
}


@pytest.mark.parametrize(("check", "bad", "words"), BAD)
def test_a_bad_trainer_fails(check: Any, bad: Any, words: str) -> None:
    with pytest.raises(ConformanceError, match=words):
        check(bad)


@pytest.mark.parametrize("trainer", [FedAvg(mixup_alpha=0.4), FedSGD(mixup_alpha=0.4)])
def test_declared_mixing_is_noted_instead_of_losses(trainer: Any) -> None:
    found = trainers.check_no_leak(trainer)
    assert found == "mixes examples: no example-level privacy"


def test_undeclared_mixing_fails() -> None:
    with pytest.raises(ConformanceError, match="loss of other examples changed"):
        trainers.check_no_leak(they.Undeclared(mixup_alpha=0.4))


@pytest.mark.parametrize("trainer", GOOD_ONES.values(), ids=GOOD_ONES)
@pytest.mark.parametrize("check", trainers.CHECKS)
def test_valid_plugin_passes_check(check: Any, trainer: Any) -> None:
    assert check(trainer) is None


def test_every_check_has_bad_implementation() -> None:
    assert {check for check, _, _ in BAD} == set(trainers.CHECKS)
